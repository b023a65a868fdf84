"""`llmdistill launch ray`: a run as a job of a Ray cluster that is there already."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmdistill
from llmdistill.cluster import enable_token
from llmdistill.config.run import RunConfig
from llmdistill.errors import ClusterError
from llmdistill.launch.bundle import CONFIG, make_bundle

ENTRYPOINT = f"python -m llmdistill run {CONFIG}"

BUNDLE_BYTES = 100 << 20
"""Ray itself takes some hundred MiB, and keeps them in the memory of its head."""

_STOP_SECONDS = 60.0


def bundle(config: RunConfig) -> dict[str, bytes]:
    """The job's working directory: relative path → contents."""
    return make_bundle(config, BUNDLE_BYTES, {"address": "auto"})


def run_job(config: RunConfig, say: Callable[[str], None]) -> int:
    """Submit a run, follow its output, and wait for its end. An interrupt stops the job.

    Args:
        config: the run.
        say: called with each piece of the job's output.

    Returns:
        The exit status of the run.

    Raises:
        ClusterError: the cluster does not answer, refuses the job, or could not start it.

    """
    client = _connect(config.cluster.ray.address)
    with tempfile.TemporaryDirectory() as folder:
        for name, contents in bundle(config).items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
        environment = {
            "working_dir": folder,
            # The cluster runs this very version, whatever its image holds.
            "py_modules": [str(Path(llmdistill.__file__).parent)],
            "excludes": ["__pycache__"],
            "env_vars": config.cluster.variables,
        }
        try:
            job = client.submit_job(entrypoint=ENTRYPOINT, runtime_env=environment)
        except (RuntimeError, ValueError) as error:
            raise ClusterError(f"the cluster refuses the job: {str(error).splitlines()[0]}", "cluster.ray") from None
    say(f"job {job} on {config.cluster.ray.address}; Ctrl-C stops it\n")
    try:
        asyncio.run(_follow(client, job, say))
    except KeyboardInterrupt:
        _stop(client, job, say)
        raise
    return _exit_status(client, job)


def _connect(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    enable_token()
    # Its notes on connections would stand between the job's own lines.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        fix = "write the address of the cluster's dashboard, http://HOST:8265"
        if "uthenticat" in reason or "uthoriz" in reason:
            fix = "put the cluster's token into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        raise ClusterError(reason, f"cluster.ray.address: {address}", fix) from None


async def _follow(client: Any, job: str, say: Callable[[str], None]) -> None:
    """Pass the job's output on until it ended; a connection that breaks is made again where it was."""
    seen = 0
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job):
                position += len(text)
                if position > seen:
                    say(text[seen - position :])
                    seen = position
        except RuntimeError:
            pass  # the connection broke; whether the job did is asked below
        if client.get_job_status(job).is_terminal():
            return
        await asyncio.sleep(1)


def _stop(client: Any, job: str, say: Callable[[str], None]) -> None:
    say(f"\nstopping job {job}\n")
    client.stop_job(job)
    deadline = time.monotonic() + _STOP_SECONDS
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)


def _exit_status(client: Any, job: str) -> int:
    from ray.job_submission import JobStatus

    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.driver_exit_code is not None and info.driver_exit_code > 0:
        return int(info.driver_exit_code)
    if info.status == JobStatus.STOPPED:
        raise ClusterError(f"job {job} was stopped", fix="the same command continues it")
    raise ClusterError(f"job {job} did not run: {(info.message or 'no reason given').strip().splitlines()[0]}")
