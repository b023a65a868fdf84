"""`launch ray`: what travels, and a real cluster of two hosts that takes a run from a third."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmdistill.config.load import load_config
from llmdistill.errors import ConfigError, DataError
from llmdistill.launch.bundle import make_bundle
from llmdistill.launch.ray_job import bundle
from tests.hosts import Hosts, make_hosts
from tests.launch.makers import write_run


def relative_run(folder: Path, teacher: Path | str, **sections: object) -> Path:
    """A run in a working directory like a laptop's: prompts by a relative path, ignored by git, beside much else."""
    path = write_run(folder, teacher, {"ray": {"address": "http://10.77.0.1:8265"}}, **sections)
    config = yaml.safe_load(path.read_text())
    config["prompts"]["sources"] = [{"path": "data/prompts.jsonl"}]
    path.write_text(yaml.safe_dump(config))
    (folder / "data").mkdir()
    (folder / "prompts.jsonl").rename(folder / "data" / "prompts.jsonl")
    (folder / ".gitignore").write_text("data/\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "pack").write_bytes(bytes(1 << 20))
    (folder / "weights.bin").write_bytes(bytes(1 << 20))
    return path


def test_what_the_run_names_travels_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = relative_run(tmp_path, "teacher")
    monkeypatch.chdir(tmp_path)
    files = bundle(load_config(path, ["train.lr=0.5"]))
    assert files.keys() == {"config.yaml", "data/prompts.jsonl"}
    assert files["data/prompts.jsonl"] == (tmp_path / "data" / "prompts.jsonl").read_bytes()
    (tmp_path / "sent.yaml").write_bytes(files["config.yaml"])
    sent = load_config(tmp_path / "sent.yaml")
    assert sent.train.lr == 0.5
    assert sent.cluster.address == "auto"
    expected = load_config(path, ["train.lr=0.5"]).model_dump()
    assert {**sent.model_dump(), "cluster": None} == {**expected, "cluster": None}


def test_what_would_not_be_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = relative_run(tmp_path, "teacher")
    monkeypatch.chdir(tmp_path)
    for override, message in (
        ("output=runs/here", "ends with the job"),
        ("teacher.model=weights.bin", "lies on this machine"),
        ("prompts.sources.0.path=../elsewhere.jsonl", "leaves the working directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            bundle(load_config(path, [override]))
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        bundle(load_config(path, ["prompts.sources.0.path=absent.jsonl"]))
    with pytest.raises(ConfigError, match="absolute path"):
        make_bundle(load_config(path), 1000, {})


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Head and worker of a Ray cluster, started as an operator does it, and the laptop that submits to it."""
    with make_hosts(tmp_path_factory.mktemp("hosts"), ("h", "w", "l"), {"RAY_AUTH_MODE": "token"}) as (made, processes):
        made.share_token("w", "l")
        processes.start_ray("head", *made.ray_node("h", "--num-cpus=2", "--dashboard-host=0.0.0.0"))
        processes.start_ray("worker", *made.ray_node("w", "--num-cpus=2"), HOME=str(made.folder / "w"))
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_from_another_host(hosts: Hosts, tiny_teacher: Path, tmp_path: Path) -> None:
    """It runs on the cluster with the laptop's own code and files; its exit status and last words come back."""
    speed = {"prompt_tokens": 4, "new_tokens": 4}
    config = relative_run(tmp_path, tiny_teacher, evaluate={"baseline": False, "speed": speed})
    environment = {**hosts.environment("l"), "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    token = (hosts.folder / "h" / ".ray" / "auth_token").read_text()

    def launch(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = hosts.at(
            "l", sys.executable, "-m", "llmdistill", "launch", "ray", config, "cluster.nodes=2", *overrides
        )
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600, check=False
        )

    done = launch("teacher.replicas=2")
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["models"]["student"]
    assert evaluation["speed"]["student"]["tokens_per_second"] > 0
    assert "train student: 6/6 steps" in done.stderr
    assert token not in done.stdout + done.stderr

    refused = launch("teacher.replicas=64", f"output={tmp_path / 'other'}")
    assert refused.returncode == 4
    last = refused.stderr.strip().splitlines()
    assert "needs 64 CPU, the cluster has 4" in last[-2]
    assert last[-1].strip().startswith("fix: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupt_stops_the_job(hosts: Hosts, tiny_teacher: Path, tmp_path: Path) -> None:
    config = relative_run(tmp_path, tiny_teacher)
    environment = {**hosts.environment("l"), "PYTHONPATH": str(Path(__file__).parents[2])}
    # One unit at a time of one request each, by one replica: long enough to be interrupted.
    slow = ["teacher.requests_per_shard=1", "teacher.replicas=1", "teacher.sampling.samples=50"]
    command = hosts.at("l", sys.executable, "-m", "llmdistill", "launch", "ray", config, *slow)
    with (tmp_path / "log").open("w") as log:
        # A shell that starts these tests in the background lets them, and what they start, ignore Ctrl-C.
        process = subprocess.Popen(
            command,
            stderr=log,
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + 400
        while not list(tmp_path.glob("run/cache/shards/*.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.wait()
    assert "the same command continues" in (tmp_path / "log").read_text()
    shards = len(list(tmp_path.glob("run/cache/shards/*.safetensors")))
    time.sleep(2)
    assert len(list(tmp_path.glob("run/cache/shards/*.safetensors"))) == shards < 3000


@pytest.mark.slow
def test_a_cluster_without_our_token_or_at_no_address_says_so(hosts: Hosts, tmp_path: Path) -> None:
    config = relative_run(tmp_path, "teacher")
    environment = {**hosts.environment("stranger"), "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = hosts.at("l", sys.executable, "-m", "llmdistill", "launch", "ray", config)
    for overrides, message in (([], "token"), (["cluster.ray.address=http://10.77.0.1:1"], "cluster.ray.address")):
        answer = subprocess.run(
            [*launch, *overrides],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        assert answer.returncode == 4, answer.stderr
        assert message in answer.stderr
        assert "Traceback" not in answer.stderr
