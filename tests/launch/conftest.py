"""A real Slurm of two nodes on this machine, and configurations to launch."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import Processes


@dataclass(frozen=True)
class Slurm:
    """A running Slurm."""

    environment: dict[str, str]

    def call(self, *command: str) -> str:
        answer = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        assert answer.returncode == 0, (command, answer.returncode, answer.stderr)
        return answer.stdout

    def state(self, job: str) -> str:
        """Empty where a busy slurmctld hangs up: ask again."""
        command = ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60).stdout.strip()

    def exit_code(self, job: str) -> str:
        text = self.call("scontrol", "show", "job", job)
        return next(word for word in text.split() if word.startswith("ExitCode=")).removeprefix("ExitCode=")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Controller, two nodes of two cores, and munge, all of this test's own."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (Debian: slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    configuration = _write_configuration(folder)
    environment = {
        **os.environ,
        "SLURM_CONF": str(configuration),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with Processes(folder, environment) as processes:
        munge = [
            "--key-file",
            folder / "munge.key",
            "--socket",
            folder / "munge.socket",
            "--pid-file",
            folder / "munge.pid",
        ]
        munge += ["--log-file", folder / "munge.log", "--seed-file", folder / "munge.seed"]
        processes.start("munged", "munged", "--foreground", "--force", *munge)
        processes.start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            processes.start(f"slurmd-{node}", "slurmd", "-D", "-c", "-N", node)
        running = Slurm(environment)
        deadline = time.monotonic() + 60
        while "idle" not in (answer := _nodes(environment)) or "n[1-2]" not in answer:
            if time.monotonic() > deadline:
                pytest.skip(f"Slurm does not run here: {answer} {processes.last_lines()}")
            time.sleep(0.5)
        yield running
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=environment, check=False)
        deadline = time.monotonic() + 60  # what the nodes of Slurm do not end stays behind
        while running.call("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.2)


def _nodes(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--format=%T %N", "--states=idle"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60).stdout


def _write_configuration(folder: Path) -> Path:
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        ports = []
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    host = socket.gethostname()
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",  # also how long a requeued job is held back
        "CryptoType=crypto/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerParameters=requeue_setup_env_fail,bf_interval=1,sched_interval=1",
        "MpiDefault=none",
        "ReturnToService=2",
        "SwitchType=switch/none",
        "KillWait=2",
        "PreemptMode=REQUEUE",
        "PreemptType=preempt/partition_prio",
        "JobRequeue=1",
        "MailProg=/bin/true",
    ]
    lines += [
        f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000"
        for n, port in enumerate(ports[1:], start=1)
    ]
    lines += [
        "PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE",
        "PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
    ]
    path = folder / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    return path
