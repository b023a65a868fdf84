"""From stored records to the tensors of a micro-batch.

1. `StepPlan` (cache/order.py) names the records of each packed sequence of a step.
2. `collate` lays their tokens one after the other and lists the rows that have a teacher distribution.
3. `read_ahead` does so in threads while the device computes.

Resuming at step n means starting the plan at step n; nothing else has state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llmdistill.cache.order import StepPlan
from llmdistill.cache.prefetch import prefetch
from llmdistill.cache.reader import CacheReader, EncodedRows
from llmdistill.objectives.targets import TeacherTargets, TopKTargets, WeightedTargets
from llmdistill.types import written_by_student

READ_AHEAD_BYTES = 256 << 20
"""Encoded rows that a rank holds in advance."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences of one forward pass, rows still encoded."""

    token_ids_BT: torch.Tensor
    """int64 [B, T]; unused slots at the end hold 0 and are neither supervised nor attended by records."""
    positions_BT: torch.Tensor
    """int64 [B, T]: position within the record; starts anew at each record, which is what bounds attention."""
    row_slots_R: torch.Tensor
    """int64 [R]: slot b·T + t of each supervised row."""
    actual_ids_R: torch.Tensor
    """int64 [R]: the token that follows the row."""
    student_rows_R: torch.Tensor
    """bool [R]: the student wrote the row's record."""
    rows: EncodedRows | None
    """None where no row is supervised."""
    tokens: int
    """Slots that hold tokens of records."""
    row_weights_R: torch.Tensor | None = None
    """float32 [R]: weight of each row in the loss, above 0; None: 1 each."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(
            self.token_ids_BT.to(device),
            self.positions_BT.to(device),
            self.row_slots_R.to(device),
            self.actual_ids_R.to(device),
            self.student_rows_R.to(device),
            None if self.rows is None else self.rows.to(device),
            self.tokens,
            None if self.row_weights_R is None else self.row_weights_R.to(device),
        )

    @property
    def has_rows(self) -> bool:
        """Whether any row is supervised."""
        return self.rows is not None

    def targets(self, vocabulary_size: int) -> TeacherTargets | None:
        """The teacher's side, decoded where the batch lies."""
        if self.rows is None:
            return None
        ids_RK, logprobs_RK = self.rows.decode(vocabulary_size)
        if self.rows.spec.kind != "top_k":
            # Where the engine could not tell the entropy, the divergence becomes the cross-entropy: a constant apart.
            entropy_R = self.rows.entropy_R
            return WeightedTargets(
                actual_ids_R=self.actual_ids_R,
                row_weights_R=self.row_weights_R,
                student_rows_R=self.student_rows_R,
                actual_logprobs_R=self.rows.actual_logprobs_R,
                ids_RK=ids_RK,
                weights_RK=logprobs_RK.exp(),
                entropy_R=None if bool(entropy_R.isnan().any()) else entropy_R,
                head_counts_R=self.rows.head_counts_R,
            )
        return TopKTargets(
            actual_ids_R=self.actual_ids_R,
            row_weights_R=self.row_weights_R,
            student_rows_R=self.student_rows_R,
            ids_RK=ids_RK,
            logprobs_RK=logprobs_RK,
            mass_R=self.rows.mass_R,
            actual_logprobs_R=self.rows.actual_logprobs_R,
            log_sum_exps=dict(zip(self.rows.spec.temperatures, self.rows.logsumexp_RJ.unbind(1), strict=True)),
        )

    def weighted_sum(self, values_R: torch.Tensor) -> torch.Tensor:
        """Σ_rows weight · value, of a value for each supervised row in their order."""
        return values_R.sum() if self.row_weights_R is None else (values_R * self.row_weights_R).sum()

    def segments_BT(self) -> torch.Tensor:
        """int64 [B, T]: number of the record of each slot, counted over the whole batch; padding has its own."""
        starts_BT = self.positions_BT == 0
        return starts_BT.flatten().cumsum(0).view_as(self.positions_BT) - 1

    def records_R(self) -> torch.Tensor:
        """int64 [R]: number of the record of each row, as in `segments_BT`."""
        return self.segments_BT().flatten()[self.row_slots_R]

    def rows_BT(self) -> torch.Tensor:
        """Bool [B, T]: the slots with a supervised row."""
        marks = torch.zeros(self.positions_BT.numel(), dtype=torch.bool, device=self.positions_BT.device)
        marks[self.row_slots_R] = True
        return marks.view_as(self.positions_BT)


def collate(
    reader: CacheReader,
    sequences: list[tuple[int, ...]],
    sequence_length: int,
    weights: np.ndarray | None = None,
) -> MicroBatch:
    """Lay records into sequences of `sequence_length` slots.

    Args:
        reader: the cache.
        sequences: the records of each sequence; an empty one gives padding alone.
        sequence_length: T.
        weights: of each record of the cache, see `source_weights.record_weights`.

    """
    token_ids_BT = torch.zeros(len(sequences), sequence_length, dtype=torch.int64)
    positions_BT = torch.zeros(len(sequences), sequence_length, dtype=torch.int64)
    slots, actual, by_student, rows, tokens = [], [], [], [], 0
    for b, members in enumerate(sequences):
        start = 0
        for number in members:
            record = reader.read(number)
            length = len(record.token_ids_N)
            token_ids_BT[b, start : start + length] = record.token_ids_N
            positions_BT[b, start : start + length] = torch.arange(length)
            # Row t predicts token t+1: the row of a supervised token lies one slot before it.
            supervised = record.supervised_N.nonzero()[:, 0]
            slots.append(b * sequence_length + start + supervised - 1)
            actual.append(record.token_ids_N[supervised])
            by_student.append(torch.full(supervised.shape, written_by_student(record.source)))
            rows.append(record.rows)
            start += length
        positions_BT[b, start:] = torch.arange(sequence_length - start)
        tokens += start
    nothing = torch.zeros(0, dtype=torch.int64)
    records = [number for members in sequences for number in members]
    return MicroBatch(
        token_ids_BT,
        positions_BT,
        torch.cat(slots) if slots else nothing,
        torch.cat(actual) if actual else nothing,
        torch.cat(by_student) if by_student else nothing.bool(),
        EncodedRows.concatenate(rows) if rows else None,
        tokens,
        None
        if weights is None
        else torch.from_numpy(np.repeat(weights[records], reader.row_counts[records]).astype(np.float32)),
    )


@dataclass(frozen=True)
class Step:
    """What one rank computes of one optimizer step."""

    number: int
    micro_batches: list[MicroBatch]
    global_rows: int
    """Supervised rows of the whole step, over all ranks: known from the plan, without asking anyone."""
    global_weight: float
    """Σ weight of these rows: the denominator of the loss, 1 where the step has no row. Equals `global_rows` where
    nothing is weighted."""
    global_lengths_S: np.ndarray
    """int32 [S]: tokens of each record of the whole step."""
    keys: list[list[bytes]]
    """Of the records of each micro-batch."""
    wait_seconds: float
    """How long the trainer waited for this step's data."""

    @property
    def global_tokens(self) -> int:
        """Tokens of the whole step, over all ranks."""
        return int(self.global_lengths_S.sum())


def weight_of(reader: CacheReader, records: np.ndarray, weights: np.ndarray | None) -> float:
    """Σ weight over the supervised rows of some records."""
    rows = reader.row_counts[records]
    return float(rows.sum() if weights is None else (rows * weights[records]).sum())


def read_ahead(
    reader: CacheReader,
    plan: StepPlan,
    first: int,
    rank: int,
    num_ranks: int,
    micro_batch_size: int,
    sequence_length: int,
    weights: np.ndarray | None = None,
) -> Iterator[Step]:
    """The steps first … len(plan) - 1 of one rank, read ahead as far as `READ_AHEAD_BYTES` allows.

    `weights` are those of the records of the cache, see `source_weights.record_weights`.
    """

    def load(number: int) -> Step:
        everyone = plan.step_records(number)
        batches = plan.micro_batches(number, rank, num_ranks, micro_batch_size)
        return Step(
            number,
            [collate(reader, sequences, sequence_length, weights) for sequences in batches],
            int(reader.row_counts[everyone].sum()),
            weight_of(reader, everyone, weights) or 1.0,
            reader.token_counts[everyone],
            [[reader.keys[record] for sequence in sequences for record in sequence] for sequences in batches],
            0.0,
        )

    def size(number: int) -> int:
        return int(reader.row_counts[plan.step_records(number)].sum()) * reader.row_bytes() // num_ranks

    steps = prefetch(range(first, len(plan)), load, size, READ_AHEAD_BYTES)
    while True:
        started = time.monotonic()
        step = next(steps, None)
        if step is None:
            return
        yield dataclasses.replace(step, wait_seconds=time.monotonic() - started)
