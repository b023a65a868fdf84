"""The module that DeepSpeed wraps: the student, its head and the objectives in one forward pass."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.config.objectives import AnyObjective
from llmdistill.objectives.chunked_head import chunked_head
from llmdistill.objectives.terms import make_terms
from llmdistill.student.packing import packed_hidden_states
from llmdistill.trainer.data import MicroBatch


class DistillationModule(nn.Module):
    """Student in, sums of the objectives out.

    Args:
        student: a causal language model.
        vocabulary_size: the real vocabulary; rows of the head beyond it do not exist for the objectives.
        objectives: as configured.

    """

    def __init__(self, student: PreTrainedModel, vocabulary_size: int, objectives: tuple[AnyObjective, ...]) -> None:
        super().__init__()
        self.student = student
        self.objectives = ObjectivesHead(vocabulary_size, objectives)

    def head_weight(self) -> nn.Parameter:
        """The head's weight [V, D], whole outside of ZeRO-3."""
        weight: nn.Parameter = self.student.get_output_embeddings().weight
        return weight

    def forward(
        self, batch: MicroBatch, progress: float = 1.0, measure_gradients: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ObjectivesHead.forward`."""
        hidden_BTD = packed_hidden_states(self.student, batch.token_ids_BT, batch.positions_BT)
        hidden_RD = hidden_BTD.flatten(0, 1)[batch.row_slots_R]
        sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.objectives(
            hidden_RD, self.head_weight(), batch, progress, measure_gradients
        )
        return sums


class ObjectivesHead(nn.Module):
    """A module without weights of its own, so that ZeRO-3 can gather the head's weight around its forward pass."""

    def __init__(self, vocabulary_size: int, objectives: tuple[AnyObjective, ...]) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.configured = objectives

    def forward(
        self,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        batch: MicroBatch,
        progress: float,
        measure_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums over the supervised rows of the batch.

        Args:
            hidden_RD: final hidden states of these rows.
            weight_VD: the head, whole.
            batch: the teacher's side.
            progress: of the training, for schedules: 0 at the first step, 1 at the last.
            measure_gradients: whether the third result is filled; it costs a pass over the logits per objective.

        Returns:
            a differentiable scalar Σ_objective weight · Σ_rows value, the detached Σ_rows value per objective, and the
            squared norm of its gradient by the logits per objective (zeros where it is not asked for). Without
            supervised rows all are 0 and the scalar still reaches every weight, with gradient 0.

        """
        targets = batch.targets(self.vocabulary_size)
        if targets is None:
            nothing = hidden_RD.new_zeros(len(self.configured), dtype=torch.float32)
            return (hidden_RD.sum() + weight_VD.sum()) * 0.0, nothing, nothing
        terms = make_terms(self.configured, progress)
        sums = chunked_head(hidden_RD, weight_VD, targets, terms, self.vocabulary_size, measure_gradients)
        squares = torch.zeros_like(sums.values) if sums.squared_gradients is None else sums.squared_gradients
        return sums.total, sums.values, squares
