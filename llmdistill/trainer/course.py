"""Which steps a training takes from which records: of a cache that is complete, or of one that the fleet still fills.

A course is a list of stretches, each a plan over a reader of fixed shards. A complete cache is one stretch, and so is a
round (trainer/rounds.py). A growing
one gives a stretch for each segment of shards as it comes (cache/growing.py), and one more with the epochs after the
first when the fleet has finished. In the first epoch every record comes once: records that do not fill a whole step are
kept for the next segment, and the last step alone is filled up with padding.

The segments are written down beside the checkpoints before they are used. They are all that the order depends on, so a
resumed training takes the same steps however far the fleet has come; and rank 0 tells the others through that file, so
that no collective is open while all wait.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.growing import GrowingCache
from llmdistill.cache.joined import JoinedReader
from llmdistill.cache.order import StepPlan, plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.rounds import Round, plan_round, read_round
from llmdistill.trainer.selection import training_records
from llmdistill.types import RECORD_KEY_BYTES

SEGMENTS = "segments.json"
_POLL_SECONDS = 1.0
_LONGER_SECONDS = 60.0
"""How much longer than rank 0 the others wait for a segment, so that it is rank 0 that says why none came."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps on one set of shards."""

    reader: CacheReader
    plan: StepPlan
    first: int
    """Steps of the training before it."""
    wait_seconds: float = 0.0
    """How long there was nothing to do before it."""


def make_plan(reader: CacheReader, job: TrainJob) -> StepPlan:
    """The steps of a training on a complete cache, the same on every rank.

    Raises:
        DataError: no training record, no supervised row, or a record longer than a packed sequence.

    """
    records = training_records(reader, job)
    if not len(records) or not reader.row_counts[records].sum():
        raise DataError("the cache holds no training record with supervised tokens", where=str(job.cache))
    return _planned(reader, job, records, 0, job.train.epochs)


def total_steps(job: TrainJob) -> int:
    """Steps of the schedule."""
    if job.round is not None:
        return job.round.config.total_steps
    if job.train.wait_for_cache:
        assert job.train.max_steps is not None, "the configuration asks for it"
        return job.train.max_steps
    planned = len(make_plan(CacheReader(job.cache), job))
    return min(planned, job.train.max_steps or planned)


def stretches(job: TrainJob, rank: int, on_wait: Callable[[], None]) -> Iterator[Stretch]:
    """The stretches of a training, in order.

    Args:
        job: the training.
        rank: of this process; rank 0 decides what a segment is.
        on_wait: called again and again while there is nothing to do.

    Raises:
        DataError: as `make_plan`, or the fleet wrote nothing for `train.cache_timeout_s`.

    """
    if job.round is not None:
        yield _round(job, job.round)
        return
    if not job.train.wait_for_cache:
        reader = CacheReader(job.cache)
        yield Stretch(reader, make_plan(reader, job), 0)
        return
    per_step = job.train.tokens_per_step // job.train.sequence_length
    shards: list[str] = []
    seen = left = np.zeros((0, RECORD_KEY_BYTES), np.uint8)
    first, waited = 0, 0.0
    for segment, seconds in _segments(job, rank, on_wait):
        waited += seconds
        shards += segment or []
        reader = CacheReader(job.cache, shards)
        numbers = reader.split(job.held_out)[0]
        keys = reader.keys.array[numbers]
        plan = _planned(reader, job, numbers[~_among(keys, seen) | _among(keys, left)], 0, 1)
        seen = keys
        if segment is not None:
            whole = (len(plan.bounds) - 1) // per_step * per_step
            left = reader.keys.array[plan.records[plan.bounds[whole] :]]
            plan = dataclasses.replace(plan, bounds=plan.bounds[: whole + 1])
        if len(plan):
            yield Stretch(reader, plan, first, waited)
            first, waited = first + len(plan), 0.0
    if not len(numbers) or not reader.row_counts[numbers].sum():
        raise DataError("the cache holds no training record with supervised tokens", where=str(job.cache))
    if job.train.epochs > 1:
        yield Stretch(reader, _planned(reader, job, numbers, 1, job.train.epochs), first)


def identity_of_records(job: TrainJob, reader: CacheReader) -> str:
    """A hash that says which records a training is on: all of a complete cache, the first segment of a growing one."""
    if job.train.wait_for_cache:
        reader = CacheReader(job.cache, _read_segments(job.checkpoints / SEGMENTS)[0][0])
    if isinstance(reader, JoinedReader):  # the student's text depends on the training itself
        reader = reader.readers[0]
    keys = [reader.keys[number] for number in training_records(reader, job).tolist()]
    return hashlib.blake2b(b"".join(sorted(keys)), digest_size=16).hexdigest()


def _among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bool [S]: which of some keys, uint8 [S, 16], are among others."""
    kind = f"V{RECORD_KEY_BYTES}"
    mine, theirs = (np.ascontiguousarray(array).view(kind)[:, 0] for array in (keys, others))
    found: np.ndarray = np.isin(mine, theirs)
    return found


def _round(job: TrainJob, current: Round) -> Stretch:
    reader = read_round(job.cache, current)
    _require_fitting(reader.token_counts, job)
    per_step = job.train.tokens_per_step // job.train.sequence_length
    teachers = training_records(reader.readers[0], job)
    plan = plan_round(reader, current, teachers, job.train.seed, job.train.sequence_length, per_step)
    return Stretch(reader, plan, current.first_step)


def _planned(reader: CacheReader, job: TrainJob, records: np.ndarray, first_epoch: int, epochs: int) -> StepPlan:
    _require_fitting(reader.token_counts[records], job)
    return plan_steps(
        reader.token_counts,
        records,
        epochs,
        job.train.seed,
        job.train.sequence_length,
        job.train.tokens_per_step // job.train.sequence_length,
        first_epoch=first_epoch,
    )


def _require_fitting(token_counts: np.ndarray, job: TrainJob) -> None:
    longest = int(token_counts.max()) if len(token_counts) else 0
    if longest > job.train.sequence_length:
        raise DataError(
            f"the longest record has {longest} tokens, train.sequence_length is {job.train.sequence_length}",
            where=str(job.cache),
            fix=f"use a train.sequence_length of at least {longest}",
        )


def _segments(job: TrainJob, rank: int, on_wait: Callable[[], None]) -> Iterator[tuple[list[str] | None, float]]:
    """Segments as they come, with the seconds waited for each; at the end None."""
    path = job.checkpoints / SEGMENTS
    segments, complete = _read_segments(path)
    growing = GrowingCache(job.cache, segments)
    number = 0
    while True:
        started = time.monotonic()
        if number == len(growing.segments) and not complete:
            if rank == 0:
                complete = growing.take(
                    max(_shards(growing) // 8, 1), _POLL_SECONDS, job.train.cache_timeout_s, on_wait
                )
                commit_bytes(path, json.dumps({"segments": growing.segments, "complete": complete}).encode())
            else:
                growing.segments, complete = _await_rank_0(path, number, job, on_wait)
        waited = time.monotonic() - started
        if number == len(growing.segments):
            yield None, waited
            return
        yield growing.segments[number], waited
        number += 1


def _shards(growing: GrowingCache) -> int:
    return sum(map(len, growing.segments))


def _await_rank_0(path: Path, number: int, job: TrainJob, on_wait: Callable[[], None]) -> tuple[list[list[str]], bool]:
    deadline = time.monotonic() + job.train.cache_timeout_s + _LONGER_SECONDS
    while time.monotonic() < deadline:
        segments, complete = _read_segments(path)
        if len(segments) > number or complete:
            return segments, complete
        on_wait()
        time.sleep(_POLL_SECONDS)
    raise DataError("rank 0 named no further shards in time", where=str(path))


def _read_segments(path: Path) -> tuple[list[list[str]], bool]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"segments": [], "complete": False}
    return found["segments"], found["complete"]
