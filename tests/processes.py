"""Daemons of a test: started in the foreground with their output in files, and ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self


class Processes:
    """Processes that end, with their groups, when the context does."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._running: list[tuple[Path, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _, process in reversed(self._running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, name: str, *command: Any, **environment: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, **environment},
                start_new_session=True,
            )
        self._running.append((log, process))
        return process

    def start_ray(self, name: str, *command: Any, **environment: str) -> None:
        """Start a node of Ray, `ray start --block …`, and wait until it runs.

        Ray gives a node thirty seconds, which a busy machine may exceed; then it is started again.
        """
        deadline = time.monotonic() + 250
        process = self.start(name, *command, **environment)
        while "will now block forever" not in (output := self.output(name)):
            if process.poll() is not None:
                assert "timed out during startup" in output, output[-3000:]
                process = self.start(name, *command, **environment)
            assert time.monotonic() < deadline, output[-3000:]
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """End a process and its group at once, without a word."""
        for log, process in self._running:
            if log.stem == name and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def output(self, name: str) -> str:
        """What a process wrote so far."""
        return (self._folder / f"{name}.log").read_text()

    def last_lines(self, count: int = 2) -> str:
        """The ends of all outputs, for a message."""
        return "; ".join(
            f"{log.name}: " + " | ".join(log.read_text().splitlines()[-count:]) for log, _ in self._running
        )
