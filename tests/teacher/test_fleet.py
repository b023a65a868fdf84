"""The fleet on a real Ray cluster, with the fake engine and engines that fail on purpose."""

import functools
import os
from pathlib import Path

import pytest

from llmdistill.cache.index import committed_keys, shard_names
from llmdistill.cache.reader import CacheReader
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, DataError, EngineError
from llmdistill.teacher.fake_engine import FakeEngine
from llmdistill.teacher.fleet import FleetReport, run_fleet
from llmdistill.types import CaptureSpec, Record, Request

SPEC = CaptureSpec("generate", "top_k", 4, 100, "t", "k", "fake", "float32", {})
TEACHER = TeacherConfig.model_validate(
    {"model": "x", "requests_per_shard": 4, "units_in_flight": 2, "sampling": {"max_new_tokens": 6, "temperature": 1.0}}
)
REQUESTS = [Request(n.to_bytes(16, "big"), (n % 90 + 1, 7), f"a:{n}", seed=n, split=n) for n in range(50)]


class FailingEngine(FakeEngine):
    """Dies, fails or refuses at chosen requests; `once` is a file that remembers that it happened."""

    def __init__(self, mode: str, once: Path | None) -> None:
        super().__init__(TEACHER, CaptureConfig(top_k=4), vocabulary_size=100, end_token_id=2)
        self._mode, self._once = mode, once

    async def answer(self, request: Request) -> Record:
        if request.seed == 17 and not (self._once and self._once.exists()):
            if self._once:
                self._once.touch()
            if self._mode == "die":
                os._exit(1)
            if self._mode == "fail":
                raise EngineError("the engine is dead")
            if self._mode == "refuse":
                raise ValueError("too long for this engine")
        return await super().answer(request)


def make_failing(cores: tuple[int, ...], mode: str, once: Path | None = None) -> FailingEngine:
    return FailingEngine(mode, once)


def run(
    cache: Path, mode: str = "none", once: Path | None = None, teacher: TeacherConfig = TEACHER, **options
) -> FleetReport:
    factory = functools.partial(make_failing, mode=mode, once=once)
    return run_fleet(REQUESTS, factory, teacher, cache, SPEC, lambda report: None, **options)


def contents(cache: Path) -> dict[bytes, list[int]]:
    reader = CacheReader(cache)
    return {reader.keys[n]: reader.read(n).token_ids_N.tolist() for n in range(len(reader))}


def test_every_request_has_its_record_once_through_deaths_and_failures(ray: None, tmp_path: Path) -> None:
    calm = run(tmp_path / "calm")
    assert (calm.records, calm.restarts, calm.rejected) == (50, 0, [])
    assert calm.rows == int(CacheReader(tmp_path / "calm").row_counts.sum())
    for mode in ("die", "fail"):
        report = run(tmp_path / mode, mode, tmp_path / f"{mode}-happened")
        assert report.restarts == 1
        assert contents(tmp_path / mode) == contents(tmp_path / "calm")

    packed = run(tmp_path / "packed", compression="zstd")
    assert packed.bytes != calm.bytes
    assert contents(tmp_path / "packed") == contents(tmp_path / "calm")

    refused = run(tmp_path / "refuse", "refuse")
    assert [row.source for row in refused.rejected] == ["a:17"]
    assert committed_keys(tmp_path / "refuse", SPEC) == {r.key for r in REQUESTS if r.seed != 17}

    with pytest.raises(EngineError, match="failed 4 times; the last one"):
        run(tmp_path / "hopeless", "fail")
    assert shard_names(tmp_path / "hopeless"), "what was finished before stays"

    with pytest.raises(ClusterError, match=r"needs 64 CPU, the cluster has \d+"):
        run(tmp_path / "greedy", teacher=TEACHER.model_copy(update={"replicas": 64}))

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    with pytest.raises(DataError, match="cannot write"):
        run(blocked)
