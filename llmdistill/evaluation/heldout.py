"""Running models over the held-out records of a cache; no teacher is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from llmdistill.cache.reader import CacheReader, StoredRecord
from llmdistill.evaluation.metrics import model_values, teacher_values
from llmdistill.evaluation.teacher_side import TeacherSide, chunks_by_row, teacher_side
from llmdistill.objectives.targets import softcapped
from llmdistill.student.head import logit_softcap

_LOGIT_BYTES = 64 << 20
"""Size of the float32 logits that exist at one time."""


@dataclass(frozen=True)
class RowTable:
    """Values of all held-out rows, record after record."""

    record_R: np.ndarray
    """int64 [R]: index of the row's record among the held-out ones, 0 … records - 1."""
    values: dict[str, np.ndarray]
    """float64 [R] under each name of `metrics.model_values` (or `metrics.teacher_values`)."""

    def of_record(self, index: int) -> dict[str, np.ndarray]:
        """The values of one record, in the order of its rows."""
        mine = self.record_R == index
        return {name: value[mine] for name, value in self.values.items()}


def measure_teacher(reader: CacheReader, records: np.ndarray) -> RowTable:
    """What the cache says of the teacher on its own text; of `chunks` only the rows of which it says something."""
    if reader.spec.kind == "chunks":
        return _teacher_by_chunks(reader, records)
    return _table(reader, records, lambda record, side: teacher_values(side))


def measure_model(
    model: PreTrainedModel,
    reader: CacheReader,
    records: np.ndarray,
    on_progress: Callable[[int], None] = lambda done: None,
) -> RowTable:
    """A model beside its teacher.

    Args:
        model: in float32 and in evaluation mode.
        reader: the cache.
        records: numbers of the records, at least one with supervised rows.
        on_progress: called with the number of records done.

    """
    return _table(reader, records, lambda record, side: _model_values(model, record, side), on_progress)


def _teacher_by_chunks(reader: CacheReader, records: np.ndarray) -> RowTable:
    parts = [chunks_by_row(reader.read(number)) for number in records.tolist()]
    logprobs_R, known_R = (torch.cat(side).numpy() for side in zip(*parts, strict=True))
    record_R = np.repeat(np.arange(len(records)), reader.row_counts[records])
    if not known_R.any():
        logprobs_R, known_R = np.full(1, np.nan), np.ones(1, bool)
        record_R = np.zeros(1, np.int64)
    unknown_R = np.full(int(known_R.sum()), np.nan)
    values = dict.fromkeys(("confidence", "correct", "entropy", "stored_entropy"), unknown_R)
    return RowTable(record_R[known_R], {"cross_entropy": -logprobs_R[known_R].astype(np.float64), **values})


def _table(
    reader: CacheReader,
    records: np.ndarray,
    values_of: Callable[[StoredRecord, TeacherSide], dict[str, torch.Tensor]],
    on_progress: Callable[[int], None] = lambda done: None,
) -> RowTable:
    parts = []
    for done, number in enumerate(records.tolist(), start=1):
        if reader.row_counts[number]:
            record = reader.read(number)
            parts.append(values_of(record, teacher_side(record)))
        on_progress(done)
    values = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return RowTable(np.repeat(np.arange(len(records)), reader.row_counts[records]), values)


@torch.inference_mode()
def _model_values(model: PreTrainedModel, record: StoredRecord, side: TeacherSide) -> dict[str, torch.Tensor]:
    # Row t predicts token t+1: the row of a supervised token lies one slot before it.
    slots_R = record.supervised_N.nonzero()[:, 0] - 1
    token_ids_BN = record.token_ids_N.unsqueeze(0).to(model.device)
    hidden_RD = model.base_model(token_ids_BN, use_cache=False).last_hidden_state[0, slots_R.to(model.device)]
    weight_VD = model.get_output_embeddings().weight[: record.rows.spec.vocabulary_size]
    size = max(_LOGIT_BYTES // (4 * len(weight_VD)), 1)
    parts = []
    for start in range(0, len(slots_R), size):
        logits_RV = softcapped(hidden_RD[start : start + size] @ weight_VD.T, logit_softcap(model))
        parts.append(model_values(logits_RV.cpu(), side.rows(start, start + size)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
