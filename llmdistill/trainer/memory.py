"""Memory of the model states of a training per GPU, at every ZeRO stage, before any model exists.

Stages 1 to 3 in bf16 are DeepSpeed's own estimators (`estimate_zero2_model_states_mem_needs`, which its file gives for
stages 1 and 2, and `estimate_zero3_model_states_mem_needs`), without offload. In bytes per parameter they count 2 for
the weights, 2 + 4 for gradients in both precisions, 4 for master weights and 8 for Adam's two moments; stage 3 adds
twice the largest layer, gathered. Stage 0 keeps all 20 on every GPU. In fp32 there is one copy of weights and of
gradients: 4 + 4 + 8, sharded stage by stage (ZeRO, arXiv 1910.02054, section 3). Weights that are not trained, beside
adapters, are there once in the training's precision, and shared out at stage 3 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

STAGES = (0, 1, 2, 3)


def model_state_bytes(
    parameters: int,
    largest_layer: int,
    stage: int,
    workers: int,
    precision: Literal["bf16", "fp16", "fp32"] = "bf16",
    frozen: int = 0,
) -> int:
    """Bytes per GPU of weights, gradients and optimizer.

    Args:
        parameters: that are trained.
        largest_layer: parameters of its largest module that ZeRO-3 gathers at once.
        stage: 0 … 3.
        workers: GPUs.
        precision: of `train.precision`.
        frozen: parameters beside them.

    """
    if frozen:
        item = 4 if precision == "fp32" else 2
        beside = item * frozen // (workers if stage == 3 else 1)
        return beside + model_state_bytes(parameters, largest_layer, stage, workers, precision)
    if precision == "fp32":
        gathered = 4 * largest_layer if stage == 3 else 0
        whole = (16, 8, 4, 0)[stage]
        return whole * parameters + gathered + (16 - whole) * parameters // workers
    if stage == 0:
        return 20 * parameters
    if stage == 3:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

        estimate = estimate_zero3_model_states_mem_needs(
            parameters, largest_layer, workers, cpu_offload=False, cpu_offload_params=False
        )
        return int(estimate[1])
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    return int(estimate_zero2_model_states_mem_needs(parameters, workers, cpu_offload=False)[1])


def activation_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes that one micro-batch leaves for the backward pass, per GPU; an estimate.

    34 bytes per token, layer and hidden unit: Korthikanti et al. 2022, arXiv 2205.05198, equation 1, without its term
    for attention scores, which fused attention does not keep; the feed-forward part (19 of the 34) is scaled by
    intermediate size over 4 · hidden and by 3/2 for a gated one.

    Args:
        config: `num_hidden_layers`, `hidden_size`, `intermediate_size`.
        tokens: slots of a micro-batch.

    """
    hidden = config["hidden_size"]
    wide = config.get("intermediate_size", 4 * hidden) / (4 * hidden)
    return int(tokens * config["num_hidden_layers"] * hidden * (15 + 19 * wide * 1.5))
