"""Which records make up which step: pure numpy functions of (sizes, seed), blind to ranks and workers.

1. `appearances` says how often each record comes in an epoch (weights per source).
2. `epoch_order` shuffles the records of an epoch, all of them or a window of shards at a time.
3. `pack` fills sequences of a fixed length with them.
4. `plan_steps` cuts the packed sequences of all epochs into optimizer steps.

A step is a list of packed sequences, the same whatever the number of ranks; `StepPlan.micro_batches` says which of them
a rank computes. So a run that is resumed at step n on another number of ranks sees every record of every epoch once.
Nothing here loops over records: 10^8 of them are planned in well under a minute.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

PACK_WINDOW = 1 << 20
"""Records that are packed together: enough that almost nothing stays empty, few enough that steps stay mixed."""


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, (purpose << 32) | epoch]))


def appearances(records: np.ndarray, weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The records of an epoch, in which each comes floor(weight) or ceil(weight) times.

    Over epochs 0 … e - 1 a record of weight w comes w·e times, rounded up or down: a weight of 0.5 is every record in
    every other epoch, half of them at a time.

    Args:
        records: numbers of records.
        weights: float [len(records)], how often each is wanted in an epoch; 0 leaves it out.
        seed: of the run.
        epoch: 0, 1, …

    Raises:
        ValueError: a weight is negative or not finite.
    """
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be numbers of at least 0")
    phase = _generator(seed, 0, purpose=1).random(len(records))
    times = np.floor(weights * (epoch + 1) + phase) - np.floor(weights * epoch + phase)
    return np.repeat(records, times.astype(np.int64))


def epoch_order(
    count: int, seed: int, epoch: int, blocks: np.ndarray | None = None, blocks_per_window: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """A permutation of 0 … count - 1, another for each epoch.

    Args:
        count: how many, below 2^32.
        seed: of the run, 0 … 2^64 - 1.
        epoch: 0, 1, …
        blocks: int [count], the block (shard) that each lies in. Given, blocks are shuffled first and samples only
            within windows of `blocks_per_window` blocks, so that a reader needs few shards at a time.
        blocks_per_window: see `blocks`.

    Returns:
        the permutation, uint32 [count], and the bounds of its windows, int64 [windows + 1].
    """
    generator = _generator(seed, epoch, purpose=0)
    # One in-place sort of (window | random bits | index) is several times faster than shuffling, and as uniform as the
    # random bits are many: of 10^8 records one in fifty shares its 32 bits with another.
    keys = generator.integers(0, 1 << 32, count, dtype=np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    bounds = np.array([0, count], np.int64)
    if blocks is not None and count:
        rank = generator.permutation(int(blocks.max()) + 1) // blocks_per_window
        window_bits = int(rank.max()).bit_length()
        windows = rank[blocks]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(windows, minlength=int(rank.max()) + 1))]).astype(np.int64)
        keys >>= np.uint64(window_bits)
        keys &= np.uint64(0xFFFFFFFF00000000)
        keys |= windows.astype(np.uint64) << np.uint64(64 - window_bits) if window_bits else np.uint64(0)
    keys |= np.arange(count, dtype=np.uint32)
    keys.sort()
    return keys.astype(np.uint32), bounds


def pack(lengths: np.ndarray, sequence_length: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing packing, on the histogram of the lengths.

    From the longest length down, all records of a length go into the fullest sequences that still hold them; sequences
    with equal room are one group, so the work grows with the number of different lengths and not of records.

    Args:
        lengths: tokens of each record, at least 1.
        sequence_length: token slots of a packed sequence.
        generator: shuffles the packed sequences.

    Returns:
        indices into `lengths`, sequence after sequence, and the bounds of the sequences [sequences + 1].

    Raises:
        ValueError: a record is longer than `sequence_length`, or empty.
    """
    if not len(lengths):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest > sequence_length or shortest < 1:
        wrong = longest if longest > sequence_length else shortest
        raise ValueError(f"a record has {wrong} tokens; a packed sequence holds 1 … {sequence_length}")
    missing = sequence_length - lengths
    # numpy sorts 16-bit integers by radix.
    by_length = np.argsort(missing.astype(np.uint16) if sequence_length < 1 << 16 else missing, kind="stable")
    counts = np.bincount(missing, minlength=sequence_length)
    starts_O, sequences_O, copies_O, total = _place(counts, sequence_length)
    placed_O = sequences_O * copies_O
    operation = np.repeat(np.arange(len(placed_O)), placed_O)
    within = np.arange(len(lengths)) - np.repeat(np.cumsum(placed_O) - placed_O, placed_O)
    sequence = starts_O[operation] + within // copies_O[operation]
    sequence = generator.permutation(total)[sequence]
    index_bits = np.uint64(len(lengths).bit_length())
    keys = (sequence.astype(np.uint64) << index_bits) | np.arange(len(lengths), dtype=np.uint64)
    keys.sort()
    members = by_length[(keys & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64)]
    return members, np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=total))])


def _place(counts: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Best-fit-decreasing on counts[sequence_length - length].

    Returns:
        operations, each putting `copies` records of one length into each of `sequences` sequences from `starts` on;
        and the number of sequences.
    """
    groups: dict[int, list[tuple[int, int]]] = {}  # room → (first sequence, how many)
    rooms: list[int] = []  # the keys of `groups`, sorted
    operations: list[tuple[int, int, int]] = []
    total = 0

    def add(room: int, start: int, many: int) -> None:
        if not many or not room:
            return
        if room not in groups:
            groups[room] = []
            insort(rooms, room)
        groups[room].append((start, many))

    for missing in np.flatnonzero(counts).tolist():
        length, left = sequence_length - missing, int(counts[missing])
        while left:
            at = bisect_left(rooms, length)
            if at < len(rooms):
                room = rooms[at]
                start, many = groups[room].pop()
                if not groups[room]:
                    del groups[room]
                    rooms.pop(at)
            else:
                room, start = sequence_length, total
                many = -(-left // (room // length))
                total += many
            copies = room // length
            full = min(many, left // copies)
            if full:
                operations.append((start, full, copies))
                add(room - copies * length, start, full)
                left -= full * copies
            if full < many and left:
                operations.append((start + full, 1, left))
                add(room - left * length, start + full, 1)
                full, left = full + 1, 0
            add(room, start + full, many - full)
    starts_O, sequences_O, copies_O = np.array(operations, np.int64).T
    return starts_O, sequences_O, copies_O, total


@dataclass(frozen=True)
class StepPlan:
    """All optimizer steps of a run."""

    records: np.ndarray
    """uint32: the records of the packed sequences, one sequence after the other, one epoch after the other."""
    bounds: np.ndarray
    """int64 [sequences + 1]: sequence i is records[bounds[i] : bounds[i + 1]]."""
    sequences_per_step: int

    def __len__(self) -> int:
        return -(-(len(self.bounds) - 1) // self.sequences_per_step)

    def step(self, number: int) -> list[tuple[int, ...]]:
        """The `sequences_per_step` sequences of a step; the last step is filled up with empty ones, so that all ranks
        run equally many forward and backward passes."""
        start = number * self.sequences_per_step
        return [self.sequence(index) for index in range(start, start + self.sequences_per_step)]

    def sequence(self, index: int) -> tuple[int, ...]:
        """The records of a packed sequence; empty beyond the last one."""
        if index >= len(self.bounds) - 1:
            return ()
        return tuple(self.records[self.bounds[index] : self.bounds[index + 1]].tolist())

    def step_records(self, number: int) -> np.ndarray:
        """All records of a step, over all ranks."""
        last = len(self.bounds) - 1
        start, stop = (min((number + i) * self.sequences_per_step, last) for i in (0, 1))
        return self.records[self.bounds[start] : self.bounds[stop]]

    def micro_batches(
        self, number: int, rank: int, num_ranks: int, micro_batch_size: int
    ) -> list[list[tuple[int, ...]]]:
        """What a rank computes of a step: its micro-batches, each a list of `micro_batch_size` sequences."""
        first = number * self.sequences_per_step
        mine = [self.sequence(index) for index in range(first + rank, first + self.sequences_per_step, num_ranks)]
        return [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]


def plan_steps(
    lengths: np.ndarray,
    records: np.ndarray,
    epochs: int,
    seed: int,
    sequence_length: int,
    sequences_per_step: int,
    weights: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
    blocks_per_window: int = 64,
    first_epoch: int = 0,
) -> StepPlan:
    """The steps of a run over `records` (indices into `lengths`).

    Args:
        lengths: tokens of each record of the cache.
        records: the records to train on.
        epochs: passes over them.
        seed: of the order.
        sequence_length: token slots of a packed sequence.
        sequences_per_step: packed sequences of an optimizer step, over all ranks.
        weights: float [len(records)], see `appearances`; None: each once an epoch.
        blocks: int [len(lengths)], the shard of each record; None shuffles without regard to shards.
        blocks_per_window: see `epoch_order`.
        first_epoch: the plan has the epochs first_epoch … epochs - 1.

    Raises:
        ValueError: a record does not fit into a packed sequence, or a weight is not a weight.
    """
    members, sizes = [], [np.zeros(1, np.int64)]
    for epoch in range(first_epoch, epochs):
        epoch_records = records if weights is None else appearances(records, weights, seed, epoch)
        order, bounds = epoch_order(
            len(epoch_records), seed, epoch, None if blocks is None else blocks[epoch_records], blocks_per_window
        )
        shuffled = epoch_records.astype(np.uint32, copy=False)[order]
        del order, epoch_records
        generator = _generator(seed, epoch, purpose=2)
        for start, stop in _windows(bounds):
            window = shuffled[start:stop]
            # int32: a length above 2^31 would not fit any sequence.
            indices, packed = pack(lengths[window].astype(np.int32, copy=False), sequence_length, generator)
            shuffled[start:stop] = window[indices]
            sizes.append(np.diff(packed))
        members.append(shuffled)
    every = members[0] if len(members) == 1 else np.concatenate(members or [np.zeros(0, np.uint32)])
    return StepPlan(every, np.cumsum(np.concatenate(sizes)), sequences_per_step)


def _windows(bounds: np.ndarray) -> list[tuple[int, int]]:
    """The windows of an order, cut into equal parts of at most `PACK_WINDOW` records."""
    found = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        parts = max(-(-(stop - start) // PACK_WINDOW), 1)
        cuts = np.linspace(start, stop, parts + 1).astype(int).tolist()
        found += list(itertools.pairwise(cuts))
    return found
