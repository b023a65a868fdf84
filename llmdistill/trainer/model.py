"""The module that DeepSpeed wraps: the student, its head and the objectives in one forward pass."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.objectives.chunked_head import chunked_row_sums
from llmdistill.trainer.data import MicroBatch


class DistillationModule(nn.Module):
    """Student in, sums of the objectives out.

    Args:
        student: a causal language model.
        vocabulary_size: the real vocabulary; rows of the head beyond it do not exist for the objectives.
        weights: objective name → weight.

    """

    def __init__(self, student: PreTrainedModel, vocabulary_size: int, weights: dict[str, float]) -> None:
        super().__init__()
        self.student = student
        self.objectives = ObjectivesHead(vocabulary_size, weights)

    def head_weight(self) -> nn.Parameter:
        """The head's weight [V, D], whole outside of ZeRO-3."""
        weight: nn.Parameter = self.student.get_output_embeddings().weight
        return weight

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ObjectivesHead.forward`."""
        hidden_BTD = self.student.base_model(
            input_ids=batch.token_ids_BT, position_ids=batch.positions_BT, use_cache=False
        ).last_hidden_state
        sums: tuple[torch.Tensor, torch.Tensor] = self.objectives(
            hidden_BTD.flatten(0, 1)[batch.row_slots_R], self.head_weight(), batch
        )
        return sums


class ObjectivesHead(nn.Module):
    """A module without weights of its own, so that ZeRO-3 can gather the head's weight around its forward pass."""

    def __init__(self, vocabulary_size: int, weights: dict[str, float]) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.weights = weights

    def forward(
        self, hidden_RD: torch.Tensor, weight_VD: torch.Tensor, batch: MicroBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the supervised rows of the batch.

        Returns:
            a differentiable scalar Σ_objective weight · Σ_rows value, and the detached Σ_rows value per objective.
            Without supervised rows both are 0 and the scalar still reaches every weight, with gradient 0.

        """
        targets = batch.targets(self.vocabulary_size)
        if targets is None:
            return (hidden_RD.sum() + weight_VD.sum()) * 0.0, hidden_RD.new_zeros(
                len(self.weights), dtype=torch.float32
            )
        return chunked_row_sums(hidden_RD, weight_VD[: self.vocabulary_size], targets, self.weights)
