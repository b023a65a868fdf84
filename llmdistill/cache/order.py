"""Which records make up which step: pure numpy functions of (sizes, seed), blind to ranks and workers.

1. `epoch_order` shuffles the records of an epoch.
2. `pack` fills sequences of a fixed length with them.
3. `plan_steps` cuts the packed sequences of all epochs into optimizer steps.

A step is a list of packed sequences, the same whatever the number of ranks; `StepPlan.micro_batches` says which of them
a rank computes. So a run that is resumed at step n on another number of ranks sees every record of every epoch once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_OPEN_SEQUENCES = 64


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 … count - 1, another for each epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def pack(lengths: np.ndarray, order: np.ndarray, sequence_length: int) -> list[list[int]]:
    """Best-fit packing: each record, in order, goes into the fullest of the 64 open sequences that still holds it.

    Args:
        lengths: tokens of each record.
        order: the records to pack, as indices into `lengths`.
        sequence_length: token slots of a packed sequence.

    Returns:
        for each packed sequence the indices of its records.

    Raises:
        ValueError: a record is longer than `sequence_length`.

    """
    closed: list[list[int]] = []
    open_members: list[list[int]] = []
    open_room = np.zeros(0, dtype=np.int64)
    for record in order.tolist():
        length = int(lengths[record])
        if length > sequence_length:
            raise ValueError(f"record {record} has {length} tokens, more than a packed sequence of {sequence_length}")
        fitting = np.where(open_room >= length, open_room, sequence_length + 1)
        best = int(fitting.argmin()) if len(fitting) else -1
        if best < 0 or fitting[best] > sequence_length:
            if len(open_members) == _OPEN_SEQUENCES:
                fullest = int(open_room.argmin())
                closed.append(open_members.pop(fullest))
                open_room = np.delete(open_room, fullest)
            open_members.append([])
            open_room = np.append(open_room, sequence_length)
            best = len(open_members) - 1
        open_members[best].append(record)
        open_room[best] -= length
    return closed + open_members


@dataclass(frozen=True)
class StepPlan:
    """All optimizer steps of a run."""

    sequences: tuple[tuple[int, ...], ...]
    """Records of each packed sequence; the sequences of an epoch follow those of the one before."""
    sequences_per_step: int

    def __len__(self) -> int:
        return -(-len(self.sequences) // self.sequences_per_step)

    def step(self, number: int) -> list[tuple[int, ...]]:
        """The `sequences_per_step` sequences of a step; the last step is filled up with empty ones, so that all ranks
        run equally many forward and backward passes.
        """
        start = number * self.sequences_per_step
        members = list(self.sequences[start : start + self.sequences_per_step])
        return members + [()] * (self.sequences_per_step - len(members))

    def micro_batches(
        self, number: int, rank: int, num_ranks: int, micro_batch_size: int
    ) -> list[list[tuple[int, ...]]]:
        """What a rank computes of a step: its micro-batches, each a list of `micro_batch_size` sequences."""
        mine = self.step(number)[rank::num_ranks]
        return [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]


def plan_steps(
    lengths: np.ndarray, records: np.ndarray, epochs: int, seed: int, sequence_length: int, sequences_per_step: int
) -> StepPlan:
    """The steps of a run over `records` (indices into `lengths`)."""
    sequences: list[tuple[int, ...]] = []
    for epoch in range(epochs):
        order = records[epoch_order(len(records), seed, epoch)]
        sequences.extend(tuple(members) for members in pack(lengths, order, sequence_length))
    return StepPlan(tuple(sequences), sequences_per_step)
