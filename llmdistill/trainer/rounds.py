"""The steps of one round of an on-policy training: which sequences hold the student's text, and which the teacher's.

Every step has `share` of its packed sequences from the student: fresh ones, written for this round, and replayed ones.
The teacher's sequences go on where the round before stopped, epoch after epoch. All of it is a function of the caches
and the configuration, so a round that is resumed has the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmdistill.cache.joined import JoinedReader
from llmdistill.cache.order import StepPlan, plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.config.rounds import RoundsConfig
from llmdistill.errors import DataError


@dataclass(frozen=True)
class Round:
    """One round, as part of a training job."""

    config: RoundsConfig
    number: int
    """0 … config.count - 1."""
    folder: Path
    """Of all rounds."""

    @property
    def first_step(self) -> int:
        """Optimizer steps before it."""
        return self.number * self.config.steps

    @property
    def last_step(self) -> int:
        """Optimizer steps at its end."""
        return self.first_step + self.config.steps

    def caches(self) -> list[Path]:
        """Caches of the student's text that it trains on: its own first, then those that it replays."""
        if not max(self.config.on_policy):
            return []
        oldest = self.number - self.config.max_age if self.config.replay else self.number
        return [round_cache(self.folder, number) for number in range(self.number, max(oldest, 0) - 1, -1)]


def round_folder(folder: Path, number: int) -> Path:
    """Where the files of a round lie."""
    return folder / f"{number:04d}"


def round_cache(folder: Path, number: int) -> Path:
    """The student's text of a round, scored by the teacher."""
    return round_folder(folder, number) / "cache"


def read_round(cache: Path, current: Round) -> JoinedReader:
    """All records that a round may use."""
    return JoinedReader([CacheReader(cache), *map(CacheReader, current.caches())])


def plan_round(
    reader: JoinedReader,
    current: Round,
    teachers: np.ndarray,
    seed: int,
    sequence_length: int,
    sequences_per_step: int,
) -> StepPlan:
    """The steps of a round.

    Args:
        reader: of `read_round`.
        current: the round.
        teachers: the training records of the first cache. The student's are of training prompts, all of them.
        seed: of the order.
        sequence_length: token slots of a packed sequence; every record fits.
        sequences_per_step: packed sequences of an optimizer step, over all ranks.

    Raises:
        DataError: there is nothing to take one of the parts from.

    """
    ends = reader.starts[[1, min(2, len(reader.readers)), len(reader.readers)]].tolist()
    pools = [teachers, np.arange(ends[0], ends[1]), np.arange(ends[1], ends[2])]
    counts_NP, before = _sequences(current, sequences_per_step, replayed=len(pools[2]) > 0)
    starts = (before, 0, 0)
    seeds = (seed, seed + 1 + current.number, seed + 1 + current.number)
    names = ("the teacher's text", f"the student's text of round {current.number}", "the text of earlier rounds")
    members: list[list[np.ndarray]] = []
    for pool, start, wanted_N, pool_seed, name in zip(pools, starts, counts_NP.T, seeds, names, strict=True):
        if wanted_N.sum() and not reader.row_counts[pool].sum():
            raise DataError(f"{name} has no training record with supervised tokens")
        taken = start + int(wanted_N.sum())
        found: list[np.ndarray] = []
        epochs = 1
        while wanted_N.sum() and len(found) < taken:
            plan = plan_steps(reader.token_counts, pool, epochs, pool_seed, sequence_length, 1)
            found = np.split(plan.records, plan.bounds[1:-1])
            epochs = -(-taken * epochs // len(found)) if len(found) < taken else epochs
        members.append(found[start:taken])
    at = np.cumsum(np.vstack([np.zeros(3, np.int64), counts_NP]), axis=0)
    ordered = [
        sequence
        for step in range(len(counts_NP))
        for pool in (1, 2, 0)
        for sequence in members[pool][at[step, pool] : at[step + 1, pool]]
    ]
    bounds = np.cumsum([0, *map(len, ordered)])
    return StepPlan(np.concatenate(ordered).astype(np.uint32), bounds, sequences_per_step)


def _sequences(current: Round, per_step: int, replayed: bool) -> tuple[np.ndarray, int]:
    """Sequences of each step by pool (teacher, fresh, replayed), int64 [N, 3], and the teacher's before this round.

    Shares need not divide a step: what is missing in one comes in a later one.
    """
    config, steps = current.config, np.arange(current.config.steps + 1)

    def student(number: int) -> np.ndarray:
        counts: np.ndarray = np.floor(steps * per_step * config.share(number) + 0.5).astype(np.int64)
        return counts

    mine = student(current.number)
    old = np.floor(mine * config.replay + 0.5).astype(np.int64) if replayed else np.zeros_like(mine)
    cumulative = np.stack([steps * per_step - mine, mine - old, old], axis=1)
    before = sum(int(config.steps * per_step - student(number)[-1]) for number in range(current.number))
    return np.diff(cumulative, axis=0), before
