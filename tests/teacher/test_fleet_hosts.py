"""The fleet on hosts with addresses of their own, while one is cut off, a replica is killed, and a host comes late."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmdistill.cache.diff import diff
from llmdistill.cache.index import open_shards, shard_folder
from llmdistill.cache.shard import write_shard
from tests.hosts import Hosts, make_hosts
from tests.launch.makers import write_run
from tests.processes import Processes
from tests.teacher.fleet_job import REQUESTS, SPEC, GatedEngine

ROOT = Path(__file__).parents[2]
HEALTH = {"period_ms": "1000", "timeout_ms": "3000", "failure_threshold": "4", "initial_delay_ms": "1000"}
"""A dead host is noticed after about a quarter of a minute here; Ray's own settings take about a minute."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hosts, Processes]]:
    """Ray's head without a core for replicas, a worker host with one, and hosts without Ray."""
    settings = {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    settings |= {f"RAY_health_check_{name}": value for name, value in HEALTH.items()}
    folder = tmp_path_factory.mktemp("fleet_hosts")
    with make_hosts(folder, ("h", "a", "b", "c", "d"), settings) as (hosts, processes):
        hosts.share_token("a", "b", "c", "d")
        processes.start_ray("h", *hosts.ray_node("h", "--num-cpus=0", "--include-dashboard=false"))
        join(hosts, processes, "a")
        yield hosts, processes


def join(hosts: Hosts, processes: Processes, host: str) -> None:
    processes.start_ray(host, *hosts.ray_node(host, "--num-cpus=1"), HOME=str(hosts.folder / host))


def wait_for(what: Callable[[], object], job: object, processes: Processes, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert job.poll() is None and time.monotonic() < deadline, processes.output("job")[-3000:]
        time.sleep(0.05)


def calm_cache(folder: Path) -> Path:
    """All records, by one engine that nothing happens to."""

    async def answer_all() -> list:
        engine = GatedEngine(None)
        return [await engine.answer(request) for request in REQUESTS]

    write_shard(shard_folder(folder), asyncio.run(answer_all()), SPEC, GatedEngine.version)
    return folder


@pytest.mark.timeout(400)
def test_each_record_once_whatever_happens_to_hosts(cluster: tuple[Hosts, Processes], tmp_path: Path) -> None:
    hosts, processes = cluster
    command = hosts.at("h", sys.executable, "-m", "tests.teacher.fleet_job", f"{hosts.address('h')}:6379", tmp_path)
    job = processes.start("job", *command)

    def waiting(host: str) -> list[int]:
        return [int(path.name.split("-")[1]) for path in tmp_path.glob(f"waiting/{hosts.address(host)}-*")]

    join(hosts, processes, "b")  # while the job runs
    wait_for(lambda: waiting("a") and waiting("b"), job, processes)
    (killed,) = waiting("a")
    os.kill(killed, signal.SIGKILL)
    hosts.cut_off("b")
    join(hosts, processes, "c")
    wait_for(lambda: waiting("c") and len(waiting("a")) == 2, job, processes)
    (tmp_path / "open").touch()
    assert job.wait(timeout=180) == 0, processes.output("job")[-3000:]

    processes.kill("b")  # by itself it would look for the head for a long time

    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"records": 80, "restarts": 1, "lost": 1, "rejected": 0}, processes.output("job")
    keys = [bytes(key) for shard in open_shards(tmp_path / "cache") for key in shard.stored("keys")]
    assert len(keys) == len(set(keys)) == len(REQUESTS)
    same = diff(calm_cache(tmp_path / "calm"), tmp_path / "cache")
    assert same["equal"], same


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_on_two_hosts(cluster: tuple[Hosts, Processes], tiny_teacher: Path, tmp_path: Path) -> None:
    """The command itself on the head, which has no core for engines."""
    hosts, processes = cluster
    join(hosts, processes, "d")
    address = f"{hosts.address('h')}:6379"
    config = write_run(tmp_path, tiny_teacher, {"address": address})
    small = ["prompts.sources.0.limit=16", "teacher.engine=vllm", "teacher.replicas=2", "capture.kind=head_tail"]
    command = [sys.executable, "-m", "llmdistill", "generate", config, *small]
    job = processes.start("generate", *hosts.at("h", *command), HF_HUB_OFFLINE="1")
    assert job.wait(timeout=500) == 0, processes.output("generate")[-3000:]
    shards = [(shard.summary.records, shard.spec.engine) for shard in open_shards(tmp_path / "run" / "cache")]
    assert shards == [(4, "vllm")] * 4
