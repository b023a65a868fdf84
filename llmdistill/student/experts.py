"""A dense model from a mixture of experts.

Each layer of experts becomes one feed-forward layer: the shared experts, where there are some, and the experts that the
router chose most often, side by side. An expert's outgoing weights are multiplied by its mean routing weight over all
tokens, scaled up so that the kept experts together weigh as much as all did: the new layer computes what the old one
would if the router sent every token to the kept experts, in their usual shares.

Layers that were dense before are brought to the same number of neurons: the most important ones stay; neurons that are
missing are added with outgoing weights 0, which changes nothing and can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.student.calibration import Importance
from llmdistill.student.cutting import build, decoder_layers
from llmdistill.student.families import Family
from llmdistill.student.selection import best

_DENSE_TYPE = {"qwen3_moe": "qwen3"}
"""Architectures whose dense form is another one; DeepSeek's knows dense layers itself."""

Neurons = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Weights gate [M, D], up [M, D], down [D, M]."""


def make_dense(teacher: PreTrainedModel, family: Family, importance: Importance, experts: int) -> PreTrainedModel:
    """The dense model, in all other widths and layers like the teacher, in its precision.

    Args:
        teacher: a mixture of experts.
        family: its architecture.
        importance: measured on it.
        experts: routed experts that a layer keeps.

    Raises:
        ConfigError: the teacher has no experts, or fewer.

    """
    config: Any = teacher.config
    total = getattr(config, str(family.field("expert")), 0) if family.router else 0
    if experts > total:
        raise ConfigError(
            f"the teacher has {total} experts, {experts} are asked for",
            where="student.from_teacher.dense_experts",
            fix=f"use at most {total}" if total else "leave it out: the teacher is dense",
        )
    neurons = (experts + (getattr(config, "n_shared_experts", None) or 0)) * config.moe_intermediate_size
    prefix, layers = decoder_layers(teacher)
    state = {name: tensor for name, tensor in teacher.state_dict().items() if ".mlp." not in name}
    generator = torch.Generator().manual_seed(0)
    for number, layer in enumerate(layers):
        inner: Any = layer
        if family.router in dict(layer.named_modules()):
            made = _joined(inner.mlp, importance.routing_LE[number], best(importance.expert_LE[number], experts))
        else:
            old = (inner.mlp.gate_proj.weight, inner.mlp.up_proj.weight, inner.mlp.down_proj.weight)
            made = _resized(old, importance.mlp_LN[number], neurons, config.initializer_range, generator)
        for name, weight in zip(("gate_proj", "up_proj", "down_proj"), made, strict=True):
            state[f"{prefix}.{number}.mlp.{name}.weight"] = weight.detach()
    return build(_dense_config(config, len(layers), neurons), state, teacher.dtype)


def _joined(mlp: Any, routing_E: torch.Tensor, kept: torch.Tensor) -> Neurons:
    gates, ups, downs = [], [], []
    if hasattr(mlp, "shared_experts"):
        shared = mlp.shared_experts
        gates, ups, downs = [shared.gate_proj.weight], [shared.up_proj.weight], [shared.down_proj.weight]
    factors = routing_E[kept] * (routing_E.sum() / routing_E[kept].sum())
    for number, factor in zip(kept.tolist(), factors.tolist(), strict=True):
        gate, up = mlp.experts.gate_up_proj[number].chunk(2)
        gates.append(gate)
        ups.append(up)
        downs.append(mlp.experts.down_proj[number] * factor)
    return torch.cat(gates), torch.cat(ups), torch.cat(downs, dim=1)


def _resized(
    old: Neurons, importance_M: torch.Tensor, neurons: int, spread: float, generator: torch.Generator
) -> Neurons:
    gate, up, down = old
    if neurons <= len(gate):
        kept = best(importance_M, neurons).to(gate.device)
        return gate[kept], up[kept], down[:, kept]
    missing = neurons - len(gate)
    fresh = [torch.randn(missing, gate.shape[1], generator=generator).mul_(spread).to(gate) for _ in range(2)]
    return (
        torch.cat([gate, fresh[0]]),
        torch.cat([up, fresh[1]]),
        torch.cat([down, down.new_zeros(len(down), missing)], dim=1),
    )


def _dense_config(config: Any, layers: int, neurons: int) -> Any:
    values: Mapping[str, Any] = config.to_dict()
    if config.model_type not in _DENSE_TYPE:
        return type(config).from_dict({**values, "first_k_dense_replace": layers, "intermediate_size": neurons})
    dense_type = _DENSE_TYPE[config.model_type]
    known = AutoConfig.for_model(dense_type).to_dict()
    shared = {
        key: value for key, value in values.items() if key in known and key not in ("model_type", "architectures")
    }
    shared["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return AutoConfig.for_model(dense_type, **{**shared, "intermediate_size": neurons})
