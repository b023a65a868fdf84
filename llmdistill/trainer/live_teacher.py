"""The teacher itself beside the student: frozen, outside of the optimizer and of DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.objectives.targets import HeadTargets
from llmdistill.student.creation import load_student
from llmdistill.student.head import logit_softcap
from llmdistill.student.trainable import require_trainable
from llmdistill.trainer.data import MicroBatch
from llmdistill.trainer.states import StateNeeds, States, forward_states


@dataclass(frozen=True)
class LiveTeacher:
    """A whole copy on every rank.

    Not a `torch.nn.Module`, so that nothing that holds it takes its weights for its own.
    """

    model: PreTrainedModel
    vocabulary_size: int
    needs: StateNeeds

    @staticmethod
    def load(folder: Path, dtype: torch.dtype, vocabulary_size: int, needs: StateNeeds) -> LiveTeacher:
        """The teacher of a model folder, ready for inference.

        Raises:
            ConfigError: its head or its attention cannot be used as the objectives need them, or its vocabulary is
                smaller.

        """
        model = load_student(folder, dtype, needs.attention_implementation).eval().requires_grad_(False)
        require_trainable(model, f"the teacher {folder}")
        rows = len(model.get_output_embeddings().weight)
        if rows < vocabulary_size:
            raise ConfigError(
                f"its head knows {rows} tokens, the cache's vocabulary has {vocabulary_size}",
                where=f"the teacher {folder}",
                fix="use a model with the tokenizer of the cache",
            )
        return LiveTeacher(model, vocabulary_size, needs)

    def to(self, device: torch.device) -> LiveTeacher:
        """The same on a device."""
        self.model.to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def states(self, batch: MicroBatch) -> States:
        """Its states on a micro-batch, without a graph."""
        return forward_states(self.model, batch.token_ids_BT, batch.positions_BT, self.needs)

    def targets(self, states: States, batch: MicroBatch) -> HeadTargets:
        """Its logits on the supervised rows, to be computed a chunk at a time."""
        return HeadTargets(
            actual_ids_R=batch.actual_ids_R,
            row_weights_R=batch.row_weights_R,
            student_rows_R=batch.student_rows_R,
            hidden_RD=states.final_BTD.flatten(0, 1)[batch.row_slots_R],
            head_weight=self.model.get_output_embeddings().weight[: self.vocabulary_size],
            softcap=logit_softcap(self.model),
        )
