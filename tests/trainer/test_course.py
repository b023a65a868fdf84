"""The steps of a training on a cache that is complete, and on one that is still written."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.shard import write_shard
from llmdistill.config.train import TrainConfig
from llmdistill.errors import DataError
from llmdistill.trainer.checkpoint import latest_checkpoint, read_state
from llmdistill.trainer.course import Stretch, stretches, total_steps
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import read_metrics
from tests.helpers import SPEC, make_record
from tests.trainer.conftest import Trained
from tests.trainer.run_ranks import job_for

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all trainings of `trained`

RECORDS = [make_record(number) for number in range(30)]


def write(cache: Path, start: int, stop: int) -> None:
    write_shard(shard_folder(cache), RECORDS[start:stop], SPEC, "fake-1")


def growing(folder: Path, **train: object) -> TrainJob:
    settings = {"wait_for_cache": True, "max_steps": 100, "epochs": 2, "cache_timeout_s": 60.0, **train}
    return replace(job_for(folder, folder / "cache", folder, **settings), held_out=0.1)


def keys(stretch: Stretch, number: int) -> list[bytes]:
    return [stretch.reader.keys[record] for record in stretch.plan.step_records(number).tolist()]


def steps(course: Iterator[Stretch]) -> list[tuple[int, list[bytes]]]:
    return [(part.first + n, keys(part, n)) for part in course for n in range(len(part.plan))]


def test_every_record_comes_once_an_epoch_while_the_cache_grows_and_again_the_same(tmp_path: Path) -> None:
    job = growing(tmp_path)
    write(job.cache, 0, 12)
    course = stretches(job, 0, lambda: None)
    first = next(course)
    seen = [(n, keys(first, n)) for n in range(len(first.plan))]
    assert [len(step) for _, step in seen] == [8]  # 4 sequences of 2 records; the others wait for the next segment
    write(job.cache, 12, 19)
    write(job.cache, 5, 9)  # another fleet has answered some of the same prompts
    second = next(course)
    seen += [(second.first + n, keys(second, n)) for n in range(len(second.plan))]
    waits: list[int] = []
    writer = threading.Timer(1.5, lambda: (write(job.cache, 19, 30), write_index(job.cache)))
    writer.start()
    whole = list(stretches(job, 0, lambda: waits.append(0)))
    assert waits and max(part.wait_seconds for part in whole) > 0.5
    rest = steps(iter(whole))
    assert rest[: len(seen)] == seen
    assert [number for number, _ in rest] == list(range(len(rest)))
    times = Counter(key for _, step in rest for key in step)
    held_out = {record.key for record in RECORDS if record.split < int(0.1 * 2**64)}
    assert held_out and times == {record.key: 2 for record in RECORDS if record.key not in held_out}
    # Another rank, or a run that is resumed when all is there, reads what was written down.
    assert steps(stretches(job, 1, lambda: None)) == rest


def test_a_training_ends_with_a_checkpoint_when_the_epochs_are_done_before_max_steps(trained: Trained) -> None:
    assert trained.errors["growing"] == trained.errors["growing-again"] == ""
    job = trained.jobs["growing"]
    lines = read_metrics(job.metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["total_steps"] for line in lines} == {99}
    assert lines[2]["learning_rate"] < lines[5]["learning_rate"]  # five steps of warm-up, of 99
    checkpoint = latest_checkpoint(job.checkpoints)
    assert checkpoint is not None and read_state(checkpoint).step == 6


def test_a_fleet_that_died_is_noticed_and_its_last_shard_named(tmp_path: Path) -> None:
    job = growing(tmp_path, cache_timeout_s=0.1)
    write(job.cache, 0, 20)
    course = stretches(job, 0, lambda: None)
    next(course)
    with pytest.raises(DataError, match=r"no new shard in 0 s, and the cache is not complete; the last of 1 is \w+"):
        next(course)


def test_max_steps_bounds_a_complete_cache(tmp_path: Path) -> None:
    job = growing(tmp_path, wait_for_cache=False, max_steps=3)
    write(job.cache, 0, 30)
    assert total_steps(job) == 3
    assert total_steps(replace(job, train=TrainConfig(**{**job.train.model_dump(), "max_steps": None}))) == 7
