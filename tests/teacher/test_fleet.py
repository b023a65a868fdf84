"""The fleet on a real Ray cluster, with the fake engine and engines that fail on purpose, at chosen requests."""

import asyncio
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.cache.index import committed_keys, shard_names
from llmdistill.cache.reader import CacheReader
from llmdistill.cluster import ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.filters import FiltersConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, DataError, EngineError
from llmdistill.teacher.fake_engine import FakeEngine
from llmdistill.teacher.filters import ResponseFilter
from llmdistill.teacher.fleet import Fleet, run_fleet
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.replica import Replica, Target
from llmdistill.types import CaptureSpec, Record, Request

SPEC = CaptureSpec("generate", "top_k", 4, 100, "t", "k", "fake", "float32", {})
TEACHER = TeacherConfig.model_validate(
    {
        "model": "x",
        "replicas": 2,
        "requests_per_shard": 4,
        "units_in_flight": 2,
        "sampling": {"max_new_tokens": 6, "temperature": 1.0},
    }
)
REQUESTS = [Request(n.to_bytes(16, "big"), (n % 90 + 1, 7), f"a:{n}", seed=n, split=n) for n in range(40)]


class FailingEngine(FakeEngine):
    """Fails at chosen requests: `faults` says how, `happened` is a folder that remembers what happened once."""

    def __init__(self, faults: dict[int, str], happened: Path | None) -> None:
        super().__init__(TEACHER, CaptureConfig(top_k=4), vocabulary_size=100, end_token_id=2)
        self._faults, self._happened = faults, happened

    async def start(self) -> None:
        if -1 in self._faults:
            raise RuntimeError("no such model")

    async def answer(self, request: Request) -> Record:
        fault, _, always = self._faults.get(request.seed or 0, "").partition(" ")
        if fault and self._happened and not always:
            marker = self._happened / str(request.seed)
            fault = "" if marker.exists() else fault
            marker.touch()
        if fault == "die":
            os._exit(1)
        elif fault == "err":
            raise EngineError("the engine is dead")
        elif fault == "refuse":
            raise ValueError("too long for this engine")
        elif fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "slow":
            await asyncio.sleep(1)
        elif fault == "swap":
            return await super().answer(REQUESTS[3])
        record = await super().answer(request)
        # Six tokens hardly ever hold an end: every other response is said to be whole.
        return replace(record, finish_reason="stop" if int.from_bytes(request.key, "big") % 2 else "length")


def make_failing(cores: tuple[int, ...], faults: dict[int, str], happened: Path | None) -> FailingEngine:
    return FailingEngine(faults, happened)


def run(cache: Path, faults: dict[int, str] | None = None, teacher: TeacherConfig = TEACHER, **options) -> FleetReport:
    happened = cache.with_name(f"{cache.name}-happened")
    happened.mkdir(exist_ok=True)
    factory = functools.partial(make_failing, faults=faults or {}, happened=happened)
    return run_fleet(options.pop("requests", REQUESTS), factory, teacher, cache, SPEC, lambda report: None, **options)


def contents(cache: Path) -> dict[bytes, list[int]]:
    reader = CacheReader(cache)
    found = [(reader.keys[n], reader.read(n).token_ids_N.tolist()) for n in range(len(reader))]
    assert len(dict(found)) == len(found), "no record twice"
    return dict(found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(ClusterConfig()):
        yield


@pytest.fixture(scope="module")
def calm(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("fleet") / "calm"
    report = run(cache)
    assert (report.records, report.restarts, report.rejected) == (40, 0, [])
    assert report.rows == int(CacheReader(cache).row_counts.sum())
    assert sum(report.tokens_of_replica.values()) == report.tokens
    return cache


def test_deaths_and_guilty_requests_cost_no_other_record(calm: Path, tmp_path: Path) -> None:
    faults = {3: "die", 21: "err", 30: "refuse always", 8: "err always"}
    report = run(tmp_path / "hard", faults, compression="zstd")
    assert report.restarts >= 5
    reasons = {row.source: row.reason for row in report.rejected}
    assert reasons == {
        "a:30": "the engine refuses it: too long for this engine",
        "a:8": "quarantined, the engine dies of it: the engine is dead",
    }
    expected = contents(calm)
    for guilty in (8, 30):
        del expected[REQUESTS[guilty].key]
    assert contents(tmp_path / "hard") == expected

    missing = [request for request in REQUESTS if request.key not in committed_keys(tmp_path / "hard", SPEC)]
    again = run(tmp_path / "hard", faults, requests=missing, total=40)
    assert (again.records, again.restarts, len(again.rejected)) == (0, 0, 2), "the guilty one is not asked again"
    (line,) = (tmp_path / "hard" / "passed_over.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "a:8"


def test_an_answer_to_another_prompt_is_not_committed(calm: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "swapped", {12: "swap"})
    assert report.restarts == 1
    assert contents(tmp_path / "swapped") == contents(calm)


def test_an_engine_that_hangs_counts_as_dead(calm: Path, tmp_path: Path) -> None:
    teacher = TEACHER.model_copy(update={"unit_timeout_s": 6})
    report = run(tmp_path / "hung", {2: "hang"}, teacher, requests=REQUESTS[:8])
    assert report.restarts >= 1
    expected = contents(calm)
    assert contents(tmp_path / "hung") == {request.key: expected[request.key] for request in REQUESTS[:8]}


def test_filtered_responses_are_named_and_not_asked_again(calm: Path, tmp_path: Path) -> None:
    reader = CacheReader(calm)
    whole = {reader.keys[n] for n in range(len(reader)) if reader.read(n).finish_reason == "stop"}
    assert 0 < len(whole) < 40
    filters = FiltersConfig(unfinished="drop")
    teacher = TEACHER.model_copy(update={"filters": filters})
    make_filter = functools.partial(ResponseFilter, filters, tmp_path)
    report = run(tmp_path / "filtered", teacher=teacher, make_filter=make_filter)
    assert committed_keys(tmp_path / "filtered", SPEC) == whole
    assert {row.reason for row in report.filtered} == {"filtered: unfinished after 6 tokens"}
    assert (report.records, len(report.filtered), report.rejected) == (len(whole), 40 - len(whole), [])

    missing = [request for request in REQUESTS if request.key not in whole]
    again = run(tmp_path / "filtered", teacher=teacher, requests=missing, make_filter=make_filter)
    assert (again.records, len(again.filtered)) == (0, 40 - len(whole))
    kept = run(tmp_path / "filtered", requests=missing)
    assert kept.records == 40 - len(whole), "without the filter they are asked again"
    assert contents(tmp_path / "filtered") == contents(calm)


def test_a_job_that_cannot_go_on_ends_and_keeps_what_is_finished(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"more than teacher\.max_rejected_share allows") as caught:
        run(tmp_path / "refused", dict.fromkeys(range(20, 40), "refuse always"))
    assert "too long for this engine" in str(caught.value)
    assert shard_names(tmp_path / "refused")

    one = TEACHER.model_copy(update={"replicas": 1})
    lone = one.model_copy(update={"requests_per_shard": 1})
    with pytest.raises(EngineError, match="engines died one after the other"):
        run(tmp_path / "hopeless", dict.fromkeys(range(1, 40), "err always"), lone)
    with pytest.raises(
        EngineError, match=r"3 engines in a row did not start; the last one: RuntimeError: no such model"
    ):
        run(tmp_path / "absent", {-1: "never"}, one)
    with pytest.raises(ClusterError, match=r"needs 64 CPU, the cluster has \d+"):
        run(tmp_path / "greedy", teacher=TEACHER.model_copy(update={"replicas": 64}))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    with pytest.raises(DataError, match="cannot write"):
        run(blocked)


def test_sigterm_finishes_what_is_in_flight_and_the_next_call_does_the_rest(calm: Path, tmp_path: Path) -> None:
    faults = dict.fromkeys(range(1, 40), "slow always")
    teacher = TEACHER.model_copy(update={"replicas": 1})
    before = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        while not shard_names(tmp_path / "drained"):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(EngineError, match=r"stopped by SIGTERM after \d+ records") as caught:
        run(tmp_path / "drained", faults, teacher)
    assert "run the same command again" in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) is before
    done = committed_keys(tmp_path / "drained", SPEC)
    assert 0 < len(done) < 40 and len(done) % 4 == 0, "whole units"
    run(tmp_path / "drained", requests=[request for request in REQUESTS if request.key not in done])
    assert contents(tmp_path / "drained") == contents(calm)


def test_a_unit_that_somebody_has_committed_is_left_as_it_is(tmp_path: Path) -> None:
    """Such as a replica on a host that was cut off, and taken for dead, and was not."""
    replica, target = Replica(functools.partial(FailingEngine, {})), Target(tmp_path, SPEC)
    replica._engine, replica._filter = FailingEngine({}, None), None
    first = asyncio.run(replica.run_unit(REQUESTS[:4], target))
    (shard,) = (tmp_path / "shards").iterdir()
    before = shard.stat()
    replica._engine.version = "another"
    assert asyncio.run(replica.run_unit(REQUESTS[:4], target)) == first
    assert shard.stat() == before


def test_a_fleet_stays_for_several_jobs_and_takes_their_weights(cluster: None, tmp_path: Path) -> None:
    """Also the replica that is started in the place of a dead one."""
    happened = tmp_path / "happened"
    happened.mkdir()
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    factory = functools.partial(make_failing, faults={30: "die"}, happened=happened)
    jobs = {"first": (REQUESTS[:20], None), "second": (REQUESTS[20:], "one"), "third": (REQUESTS, "two")}
    with Fleet(factory, TEACHER.model_copy(update={"replicas": 1})) as fleet:
        reports = {}
        for name, (requests, weights) in jobs.items():
            target = Target(tmp_path / name, SPEC)
            reports[name] = fleet.run(requests, target, weights=weights and tmp_path / weights)
        assert fleet.cpus_in_use().total() == 1
    assert reports["first"].push_seconds == 0 and reports["third"].push_seconds > 0
    assert reports["second"].restarts == 1 and reports["second"].start_seconds > 0
    assert reports["third"].start_seconds == 0, "nothing was started anew"

    for name, (requests, weights) in jobs.items():
        engine = make_failing((), {}, None)
        if weights:
            asyncio.run(engine.load_weights(tmp_path / weights))
        expected = {request.key: asyncio.run(engine.answer(request)).token_ids_N.tolist() for request in requests}
        assert contents(tmp_path / name) == expected
