"""From our configuration to a DeepSpeed engine."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from llmdistill.config.train import TrainConfig
from llmdistill.student.average import track_average
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.schedule import learning_rate_factor

_UNIVERSAL = {
    "checkpoint": {"load_universal": True},
    # Small weights that ZeRO-3 keeps whole come out of the load without their size (DeepSpeed 0.19.8).
    "zero_optimization": {"stage3_param_persistence_threshold": 0},
}


def deepspeed_config(train: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed dictionary, every value resolved; `train.deepspeed` is laid over it."""
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    ours = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.accumulation_steps,
        "train_batch_size": train.micro_batch_size * train.accumulation_steps * train.workers,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own optimizers are compiled on the machine; torch's is always there.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return _overlaid(ours, train.deepspeed)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _overlaid(below[key], value) if both else value
    return merged


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, vectors (norms, biases) do not."""
    matrices = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim >= 2]
    vectors = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def initialize(module: DistillationModule, train: TrainConfig, total_steps: int, universal: bool = False) -> Any:
    """The DeepSpeed engine of this rank; the process group exists already.

    Args:
        module: student and objectives.
        train: the settings.
        total_steps: optimizer steps of the whole training.
        universal: the engine will load a checkpoint in the universal format.

    """
    import deepspeed

    deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False)
    optimizer = torch.optim.AdamW(
        weight_decay_groups(module, train.weight_decay),
        lr=train.lr,
        betas=(train.adam_beta1, train.adam_beta2),
        fused=True,
    )
    if train.ema_decay is not None:
        track_average(optimizer, train.ema_decay)
    factor = functools.partial(
        learning_rate_factor, total_steps=total_steps, warmup_ratio=train.warmup_ratio, min_ratio=train.min_lr_ratio
    )
    if train.zero_stage == 3:
        # The objectives use the head's weight outside of the head: ZeRO-3 must gather it around their forward pass.
        deepspeed.zero.register_external_parameter(module.objectives, module.head_weight())
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, factor),
        config=_overlaid(deepspeed_config(train), _UNIVERSAL if universal else {}),
    )
    return engine
