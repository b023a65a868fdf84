"""The objectives in which the student is its own teacher, from forward passes to sums over the supervised rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from llmdistill.config.objectives import AnyObjective, ForwardKLConfig
from llmdistill.config.self_distillation import ContrastiveConfig, DeepSupervisionConfig, SelfDistillationConfig
from llmdistill.errors import ConfigError
from llmdistill.objectives.chunked_head import HeadSums, chunked_head
from llmdistill.objectives.self_distillation import contrastive, deep_supervision, mean_states
from llmdistill.objectives.targets import HeadTargets
from llmdistill.objectives.terms import make_terms
from llmdistill.student.head import final_norm, logit_softcap
from llmdistill.student.packing import forward_packed
from llmdistill.trainer.data import MicroBatch
from llmdistill.trainer.states import States, squared_gradient

Views = tuple[torch.Tensor, torch.Tensor]
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Of an objective: differentiable Σ_rows value, the same detached, squared norm of its gradient where it was asked."""


class SelfDistillationObjectives:
    """No weights of its own.

    Args:
        objectives: all that are configured; those of other kinds are left alone.
        student: gives its final norm and how it caps logits.
        vocabulary_size: the real vocabulary.

    """

    def __init__(self, objectives: Sequence[AnyObjective], student: PreTrainedModel, vocabulary_size: int) -> None:
        self._deep = next((one for one in objectives if isinstance(one, DeepSupervisionConfig)), None)
        self._contrastive = next((one for one in objectives if isinstance(one, ContrastiveConfig)), None)
        self._earlier = next((one for one in objectives if isinstance(one, SelfDistillationConfig)), None)
        self._final_norm = final_norm(student) if self._deep else None
        self._softcap = logit_softcap(student)
        self._vocabulary_size = vocabulary_size

    def views(self, student: PreTrainedModel, batch: MicroBatch, progress: float) -> Views | None:
        """The final states [B, T, D] of two passes with dropout on the embeddings, where an objective compares them.

        What is dropped follows from the tokens of a packed sequence and the progress of the training alone, so that it
        depends neither on ranks nor on micro-batches, and is the same in a resumed training.
        """
        if self._contrastive is None:
            return None
        found = []
        for view in range(2):
            with _dropped_embeddings(student, batch, self._contrastive.dropout, f"{view} {progress:.9f}"):
                found.append(forward_packed(student, batch.token_ids_BT, batch.positions_BT).final_BTD)
        return found[0], found[1]

    def parts(
        self,
        states: States,
        weight_VD: torch.Tensor,
        batch: MicroBatch,
        views: Views | None,
        earlier: HeadTargets | None,
        measure: bool,
    ) -> dict[str, Part]:
        """Objective type → its part.

        Args:
            states: of the student.
            weight_VD: the head, whole.
            batch: with supervised rows.
            views: see `views`.
            earlier: logits of the earlier student.
            measure: whether the gradients are measured.

        """
        parts: dict[str, Part] = {}
        final_RD = _rows(states.final_BTD, batch)
        if self._deep is not None:
            assert self._final_norm is not None
            layers_RD = [self._final_norm(_rows(states.hidden[layer], batch)) for layer in self._deep.layers]
            terms = make_terms([ForwardKLConfig(type="forward_kl")])
            sums = deep_supervision(
                layers_RD,
                final_RD,
                weight_VD,
                batch.actual_ids_R,
                terms,
                self._vocabulary_size,
                measure,
                self._softcap,
                batch.row_weights_R,
            )
            parts["deep_supervision"] = part_of(sums)
        if self._earlier is not None:
            assert earlier is not None
            terms = make_terms([ForwardKLConfig(type="forward_kl", temperature=self._earlier.temperature)])
            sums = chunked_head(
                final_RD, weight_VD, earlier, terms, self._vocabulary_size, measure, softcap=self._softcap
            )
            parts["self_distillation"] = part_of(sums)
        if self._contrastive is not None:
            assert views is not None
            value = _contrastive_sum(*views, batch, self._contrastive.temperature)
            parts["contrastive"] = value, value.detach(), squared_gradient(value, views) if measure else None
        return parts


def part_of(sums: HeadSums) -> Part:
    """The part of an objective that a head computed alone."""
    return sums.total, sums.values[0], None if sums.squared_gradients is None else sums.squared_gradients[0]


def _rows(hidden_BTD: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    return hidden_BTD.flatten(0, 1)[batch.row_slots_R]


def _contrastive_sum(
    first_BTD: torch.Tensor, second_BTD: torch.Tensor, batch: MicroBatch, temperature: float
) -> torch.Tensor:
    """Σ_records value · (weight of its supervised rows), each told from the records of its own packed sequence.

    Padding and records without rows take no part. Other sequences take none either: which of them share a micro-batch
    must not change the value.
    """
    segments_BT, rows_BT = batch.segments_BT(), batch.rows_BT()
    counts_S = segments_BT[rows_BT].bincount(minlength=int(segments_BT.max()) + 1)
    kept_S = counts_S > 0
    records_BT = torch.where(kept_S, kept_S.cumsum(0) - 1, -1)[segments_BT]
    number = int(kept_S.sum())
    sequences_BT = torch.arange(len(segments_BT), device=segments_BT.device).unsqueeze(1).expand_as(segments_BT)
    sequence_N = counts_S.new_zeros(number).scatter(0, records_BT[rows_BT], sequences_BT[rows_BT])
    means = [mean_states(states_BTD, records_BT, number) for states_BTD in (first_BTD, second_BTD)]
    values_N = contrastive(means[0], means[1], temperature, sequence_N)
    if batch.row_weights_R is None:
        return (values_N * counts_S[kept_S]).sum()
    weights_S = batch.row_weights_R.new_zeros(len(counts_S)).index_add(0, segments_BT[rows_BT], batch.row_weights_R)
    return (values_N * weights_S[kept_S]).sum()


@contextmanager
def _dropped_embeddings(student: PreTrainedModel, batch: MicroBatch, share: float, salt: str) -> Iterator[None]:
    seeds = [zlib.crc32(ids_T.tobytes(), zlib.crc32(salt.encode())) for ids_T in batch.token_ids_BT.cpu().numpy()]

    def drop(module: torch.nn.Module, inputs: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        if output_BTD.shape[:2] != batch.token_ids_BT.shape:
            raise ConfigError(
                f"{student.config.model_type} takes the records of a sequence one by one, and cannot have views of all",
                where="objectives: contrastive",
                fix="leave the objective out for this family",
            )
        kept = []
        for seed in seeds:
            generator = torch.Generator(output_BTD.device).manual_seed(seed)
            noise_TD = torch.rand(output_BTD.shape[1:], generator=generator, device=output_BTD.device)
            kept.append(noise_TD >= share)
        return output_BTD * torch.stack(kept) / (1.0 - share)

    handle = student.get_input_embeddings().register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()
