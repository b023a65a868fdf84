"""`llmdistill launch slurm`: a run as one Slurm job."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llmdistill import __version__
from llmdistill.config.run import RunConfig
from llmdistill.errors import ClusterError, ConfigError
from llmdistill.launch.fits import require_gpus
from llmdistill.launch.render import render

_FIRST_PORT, _PORTS = 20000, 10000
_SIGNAL_SECONDS = 120


def job_script(config: RunConfig, path: Path, overrides: Sequence[str]) -> str:
    """The batch script.

    Args:
        config: the run, as `path` and `overrides` give it.
        path: its file, on storage that all nodes share.
        overrides: `key=value` strings of the call.

    Raises:
        ConfigError: the run does not fit into the job, or a path cannot stand in a batch script.

    """
    slurm = config.cluster.slurm
    gpus = slurm.nodes * slurm.gpus_per_node
    require_gpus(
        config, capture=gpus, train=gpus, node=slurm.gpus_per_node, asked="cluster.slurm (nodes × gpus_per_node)"
    )
    return render(
        "slurm/job.sbatch.jinja",
        slurm=slurm,
        container=slurm.container,
        variables=config.cluster.variables,
        name=_word(Path(config.output).resolve().name, "output"),
        folder=_word(str(Path.cwd()), "the working directory"),
        logs=_word(str(log_folder(config)), "output"),
        mounts=_mounts(config),
        program=Path(sys.executable).parent,
        version=__version__,
        arguments=[str(path.resolve()), *overrides],
        first_port=_FIRST_PORT,
        ports=_PORTS,
        signal_seconds=_SIGNAL_SECONDS,
    )


def log_folder(config: RunConfig) -> Path:
    """Where the logs of jobs lie."""
    return Path(config.output).resolve() / "launch"


def submit(config: RunConfig, script: str) -> str:
    """Hand a batch script to sbatch.

    Returns:
        The job's number.

    Raises:
        ClusterError: Slurm refuses the job.
        ConfigError: there is no sbatch on this machine.

    """
    log_folder(config).mkdir(parents=True, exist_ok=True)  # Slurm does not make it
    try:
        answer = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError("there is no sbatch on this machine", fix="run this on a login node of the cluster") from None
    if answer.returncode:
        raise ClusterError(f"Slurm refuses the job: {answer.stderr.strip()}", "cluster.slurm")
    return answer.stdout.strip().partition(";")[0]


def _mounts(config: RunConfig) -> list[str]:
    container = config.cluster.slurm.container
    if container is None:
        return []
    own = [str(Path.cwd()), str(Path(config.output).resolve()), config.cluster.slurm.temporary_folder]
    return list(dict.fromkeys([*own, *container.mounts]))


def _word(text: str, what: str) -> str:
    if not re.fullmatch(r"[^\s'\"\\$`#%]+", text):
        raise ConfigError(
            f"{what} is '{text}', which cannot stand in an #SBATCH line",
            fix="use a path without spaces, quotes, $, # and %",
        )
    return text
