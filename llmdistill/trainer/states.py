"""What a model's forward pass leaves for the objectives: final states, and inner ones where an objective asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.config.objectives import AnyObjective
from llmdistill.config.self_distillation import DeepSupervisionConfig
from llmdistill.config.structure import (
    AttentionKLConfig,
    AttentionMSEConfig,
    HiddenCosineConfig,
    HiddenMSEConfig,
    RelationalAngleConfig,
    RelationalDistanceConfig,
    RelationConfig,
)
from llmdistill.errors import ConfigError
from llmdistill.student.packing import PackedOutput, forward_packed

_OF_STATES = (
    HiddenMSEConfig,
    HiddenCosineConfig,
    RelationalDistanceConfig,
    RelationalAngleConfig,
    DeepSupervisionConfig,
)
_PROJECTIONS = {"queries": "q_proj", "keys": "k_proj", "values": "v_proj"}


@dataclass(frozen=True)
class StateNeeds:
    """What the objectives of a training ask of a forward pass besides the final states."""

    hidden: bool = False
    attentions: bool = False
    vectors: frozenset[str] = frozenset()
    """Some of `queries`, `keys` and `values`."""

    @staticmethod
    def of(objectives: Sequence[AnyObjective]) -> StateNeeds:
        """The needs of some objectives."""
        relations = [objective for objective in objectives if isinstance(objective, RelationConfig)]
        return StateNeeds(
            any(isinstance(objective, _OF_STATES) for objective in objectives),
            any(isinstance(objective, (AttentionKLConfig, AttentionMSEConfig)) for objective in objectives),
            frozenset(kind for objective in relations for kind in objective.on),
        )

    @property
    def attention_implementation(self) -> str:
        """Fused kernels return no attention maps."""
        return "eager" if self.attentions else "sdpa"


@dataclass(frozen=True)
class States(PackedOutput):
    """Of the B sequences of T slots of a micro-batch; L is the number of blocks."""

    vectors: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """`queries`, `keys`, `values` → L tensors [B, T, heads × head width]."""

    @property
    def inner(self) -> list[torch.Tensor]:
        """All but the final states."""
        return [*self.hidden, *self.attentions, *(state for kind in self.vectors.values() for state in kind)]


def forward_states(
    model: PreTrainedModel, token_ids_BT: torch.Tensor, positions_BT: torch.Tensor, needs: StateNeeds
) -> States:
    """Run a causal language model without its head.

    Args:
        model: student or teacher.
        token_ids_BT: packed records.
        positions_BT: start anew at each record, which is what bounds attention.
        needs: what is kept.

    Raises:
        ConfigError: the model does not give what is needed.

    """
    with _recorded_vectors(model, needs.vectors) as vectors:
        output = forward_packed(model, token_ids_BT, positions_BT, needs.hidden, needs.attentions)
    return States(output.final_BTD, output.hidden, output.attentions, vectors)


@contextmanager
def _recorded_vectors(model: PreTrainedModel, names: frozenset[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Keep the outputs of the attention projections of a forward pass, in the order of the blocks."""
    recorded: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = []
    for name in names:
        modules = [module for path, module in model.base_model.named_modules() if path.endswith(_PROJECTIONS[name])]
        if len(modules) != model.config.num_hidden_layers:
            raise ConfigError(
                f"{type(model).__name__} has {len(modules)} modules {_PROJECTIONS[name]} for"
                f" {model.config.num_hidden_layers} blocks",
                where="objectives: relation",
                fix="use a hidden_mse or relational objective for this family",
            )
        handles += [module.register_forward_hook(_keeper(recorded[name])) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _keeper(kept: list[torch.Tensor]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        kept.append(output)

    return keep


def squared_gradient(value: torch.Tensor, inner: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared norm of the gradient of a sum by all of the inner states that it depends on."""
    gradients = torch.autograd.grad(value, list(inner), retain_graph=True, allow_unused=True)
    return torch.stack([gradient.float().square().sum() for gradient in gradients if gradient is not None]).sum()
