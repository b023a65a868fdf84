"""The objectives on inner states, from two forward passes to a sum over the supervised rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.config.objectives import AnyObjective
from llmdistill.config.structure import (
    AttentionKLConfig,
    AttentionMSEConfig,
    HiddenCosineConfig,
    HiddenMSEConfig,
    MappedConfig,
    RelationalConfig,
    RelationConfig,
)
from llmdistill.errors import ConfigError
from llmdistill.objectives.attention import attention_kl, attention_mse, require_attentions
from llmdistill.objectives.hidden import hidden_cosine, hidden_mse
from llmdistill.objectives.layer_map import LayerPair, explicit_map, last_map, uniform_map
from llmdistill.objectives.relation import relation
from llmdistill.objectives.relational import relational_angle, relational_distance
from llmdistill.student.projectors import Projectors
from llmdistill.trainer.data import MicroBatch
from llmdistill.trainer.states import States

_HIDDEN = {"hidden_mse": hidden_mse, "hidden_cosine": hidden_cosine}
_ATTENTION = {"attention_kl": attention_kl, "attention_mse": attention_mse}
_RELATIONAL = {"relational_distance": relational_distance, "relational_angle": relational_angle}


@dataclass(frozen=True)
class MappedObjective:
    """An objective and the layers that it pairs."""

    config: MappedConfig
    pairs: tuple[LayerPair, ...]


class StructureObjectives(nn.Module):
    """Σ_rows value of each objective that compares layers of the two models, the mean over the pairs of layers.

    Holds the projectors, which are trained with the student and stay behind when it is exported.

    Args:
        objectives: all that are configured; those of other kinds are left alone.
        student: gives numbers of layers and widths.
        teacher: the same; None where nothing needs it.

    Raises:
        ConfigError: a layer map that does not fit.

    """

    def __init__(
        self, objectives: Sequence[AnyObjective], student: PreTrainedModel, teacher: PreTrainedModel | None
    ) -> None:
        super().__init__()
        mapped = [objective for objective in objectives if isinstance(objective, MappedConfig)]
        self.mapped: dict[str, MappedObjective] = {}
        self.projectors = nn.ModuleDict()
        for objective in mapped:
            assert teacher is not None, "the launcher gives a teacher where an objective needs one"
            pairs = _pairs(objective, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
            self.mapped[objective.type] = MappedObjective(objective, tuple(pairs))
            if isinstance(objective, (HiddenMSEConfig, HiddenCosineConfig)):
                self.projectors[objective.type] = Projectors(
                    pairs, student.config.hidden_size, teacher.config.hidden_size
                )

    def forward(self, student: States, teacher: States, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """Objective type → differentiable scalar Σ_rows value, float32 or float64."""
        return {name: self._sum(name, objective, student, teacher, batch) for name, objective in self.mapped.items()}

    def nothing(self) -> torch.Tensor:
        """0 that reaches every projector, for a micro-batch without rows: all ranks reduce the same gradients."""
        zero = torch.zeros(())
        for parameter in self.parameters():
            zero = zero.to(parameter.device) + parameter.sum() * 0.0
        return zero

    def _sum(
        self, name: str, objective: MappedObjective, student: States, teacher: States, batch: MicroBatch
    ) -> torch.Tensor:
        config = objective.config
        value: Callable[[LayerPair], torch.Tensor]
        if isinstance(config, (HiddenMSEConfig, HiddenCosineConfig)):

            def value(pair: LayerPair) -> torch.Tensor:
                projected_RD = self.projectors[name](_rows(student.hidden[pair.student], batch), pair)
                return batch.weighted_sum(_HIDDEN[name](projected_RD, _rows(teacher.hidden[pair.teacher], batch)))

        elif isinstance(config, (AttentionKLConfig, AttentionMSEConfig)):
            students = require_attentions(student.attentions, len(student.attentions))
            teachers = require_attentions(teacher.attentions, len(teacher.attentions))

            def value(pair: LayerPair) -> torch.Tensor:
                maps = students[pair.student - 1], teachers[pair.teacher - 1]
                return batch.weighted_sum(_ATTENTION[name](*maps, batch.rows_BT()))

        elif isinstance(config, RelationConfig):
            on, heads = config.on, config.heads

            def value(pair: LayerPair) -> torch.Tensor:
                sums = [
                    batch.weighted_sum(
                        relation(
                            student.vectors[kind][pair.student - 1],
                            teacher.vectors[kind][pair.teacher - 1],
                            batch.segments_BT(),
                            batch.rows_BT(),
                            heads,
                        )
                    )
                    for kind in on
                ]
                return torch.stack(sums).mean()

        else:
            assert isinstance(config, RelationalConfig)
            tokens = config.tokens

            def value(pair: LayerPair) -> torch.Tensor:
                states = _rows(student.hidden[pair.student], batch), _rows(teacher.hidden[pair.teacher], batch)
                return _relational_sum(name, *states, batch, tokens)

        return torch.stack([value(pair) for pair in objective.pairs]).mean()


def _rows(hidden_BTD: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    return hidden_BTD.flatten(0, 1)[batch.row_slots_R]


def _relational_sum(
    name: str, student_RD: torch.Tensor, teacher_RD: torch.Tensor, batch: MicroBatch, tokens: int
) -> torch.Tensor:
    """Σ_records (mean over the compared rows) · (rows of the record), so that packing and splitting do not weigh in."""
    records_R = batch.segments_BT().flatten()[batch.row_slots_R]
    sums, start = [], 0
    for count in records_R.unique_consecutive(return_counts=True)[1].tolist():
        step = max(count / tokens, 1.0)
        chosen = start + (torch.arange(min(count, tokens), device=student_RD.device) * step).long()
        one_record = torch.zeros_like(chosen)
        mean = _RELATIONAL[name](student_RD[chosen], teacher_RD[chosen], one_record).mean()
        sums.append(mean * (count if batch.row_weights_R is None else batch.row_weights_R[start : start + count].sum()))
        start += count
    return torch.stack(sums).sum()


def _pairs(objective: MappedConfig, student_layers: int, teacher_layers: int) -> list[LayerPair]:
    where = f"objectives: {objective.type}.layers"
    blocks_only = isinstance(objective, (AttentionKLConfig, AttentionMSEConfig, RelationConfig))
    if objective.layers == "uniform":
        pairs = uniform_map(student_layers, teacher_layers, objective.count)
    elif objective.layers == "last":
        pairs = last_map(student_layers, teacher_layers, objective.count or 1)
    elif blocks_only:
        # Attention has no norm behind it: any block may learn from any.
        pairs = [LayerPair(*pair) for pair in objective.layers]
        if any(not (1 <= pair.student <= student_layers and 1 <= pair.teacher <= teacher_layers) for pair in pairs):
            raise ConfigError(
                f"{list(objective.layers)} are not pairs of blocks 1 … {student_layers} and 1 … {teacher_layers}", where
            )
    else:
        pairs = explicit_map(objective.layers, student_layers, teacher_layers)
    return pairs
