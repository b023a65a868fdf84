"""`launch ray`: what travels, and a real cluster of two hosts that takes a run from a third."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from llmdistill.config.load import load_config
from llmdistill.errors import ConfigError, DataError
from llmdistill.launch.bundle import make_bundle
from llmdistill.launch.ray_job import bundle
from tests.launch.makers import write_run
from tests.processes import Processes

BIN = Path(sys.executable).parent


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


@dataclass(frozen=True)
class Hosts:
    """Network namespaces: head and worker of a Ray cluster, and the laptop that submits to it."""

    prefix: str
    folder: Path

    def at(self, host: str, *command: object) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}{host}", *map(str, command)]

    def environment(self, host: str) -> dict[str, str]:
        """Every host has a home of its own; only a source tree on the laptop's path is under test."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"
        }
        home = self.folder / host
        home.mkdir(exist_ok=True)
        compiled = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
        return {
            **kept,
            "HOME": str(home),
            "TORCH_EXTENSIONS_DIR": compiled,  # DeepSpeed compiles for half a minute in a home that is new
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts on one bridge, with a Ray cluster of two, started as an operator does it."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    made = Hosts(f"llmd{os.getpid()}", tmp_path_factory.mktemp("hosts"))
    with contextlib.ExitStack() as stack:
        for number, host in enumerate(("h", "w", "l"), start=1):
            name = f"{made.prefix}{host}"
            if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
                pytest.skip("network namespaces cannot be made here")
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
            _ip("-n", name, "link", "set", "lo", "up")
            if number == 1:
                _ip("-n", name, "link", "add", "br0", "type", "bridge")
                device = "br0"
            else:
                device = "eth0"
                _ip(
                    "-n",
                    name,
                    "link",
                    "add",
                    device,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    f"v{number}",
                    "netns",
                    f"{made.prefix}h",
                )
                _ip("-n", f"{made.prefix}h", "link", "set", f"v{number}", "master", "br0", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
        # A folder for each host, since all share one disk here: Ray unpacks a job's files anew on every node that the
        # job comes to, and would remove the working directory of the processes on the first (MKL then ends them).
        for host in ("h", "w"):
            stack.callback(shutil.rmtree, f"/tmp/{made.prefix}{host}", ignore_errors=True)
        operator = {**made.environment("h"), "RAY_AUTH_MODE": "token"}
        processes = stack.enter_context(Processes(made.folder, operator))
        subprocess.run(
            [BIN / "ray", "get-auth-token", "--generate"], env=made.environment("h"), capture_output=True, check=True
        )
        for host in ("w", "l"):  # the operator's way: one file to every host
            made.environment(host)
            shutil.copytree(made.folder / "h" / ".ray", made.folder / host / ".ray")
        start = ["ray", "start", "--block", "--num-cpus=2"]
        head = [*start, "--head", "--node-ip-address=10.77.0.1", "--port=6379", "--dashboard-host=0.0.0.0"]
        head.append(f"--temp-dir=/tmp/{made.prefix}h")
        processes.start_ray("head", *made.at("h", *head))
        worker = [*start, "--address=10.77.0.1:6379", "--node-ip-address=10.77.0.2"]
        worker.append(f"--temp-dir=/tmp/{made.prefix}w")
        processes.start_ray("worker", *made.at("w", *worker), HOME=str(made.folder / "w"))
        yield made


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


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
        process = subprocess.Popen(command, stderr=log, env=environment, cwd=tmp_path, start_new_session=True)
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
