"""What each rank does at the moment, and the watch over it: a rank that hangs ends the training and is named.

A rank only notes what it begins. One thread writes that into a file for the others, another looks at the clock alone,
so that a file system that hangs does not stop it. When a rank has begun nothing new for too long, all ranks write the
stacks of their threads into the folder, one message says who waits for what, and the processes end. Nothing of this
needs a collective: those are what hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError

PHASES = {
    "start": "loads models and checkpoint for step {}",
    "cache": "waits for the fleet before step {}",
    "data": "waits for the data of step {}",
    "compute": "is in forward and backward of step {}",
    "collective": "is in the collectives and the optimizer of step {}",
    "evaluation": "evaluates after step {}",
    "checkpoint": "writes the checkpoint of step {}",
}
"""What a rank can be in, in the order of a step, and the words for it."""

_START_FACTOR = 4
"""How many times longer a start may take: it reads models from disk and compiles."""
_PAUSE_SECONDS = 5.0
_WRITE_SECONDS = 30.0
"""How long the last words may take, on a file system that may be what hangs."""
_STALLED = "stalled.json"


class Signs:
    """The signs of life of this rank.

    Args:
        folder: shared by the ranks, on any file system that all see.
        rank: of this process.
        num_ranks: in all.
        timeout: seconds without a new sign; None watches nothing.

    """

    def __init__(self, folder: Path, rank: int, num_ranks: int, timeout: float | None) -> None:
        self._folder, self._rank, self._num_ranks, self._timeout = folder, rank, num_ranks, timeout
        self._pause = min((timeout or 0) / 10, _PAUSE_SECONDS)
        self._stopped, self._stalled = threading.Event(), threading.Event()
        self._now: tuple[str, int, float] = ("start", 1, time.monotonic())

    def mark(self, phase: str, step: int) -> None:
        """Note that this rank begins something of a step (the first is 1); one of `PHASES`."""
        self._now = (phase, step, time.monotonic())

    def __enter__(self) -> Self:
        if self._timeout is not None:
            threading.Thread(target=self._write, name="signs", daemon=True).start()
            threading.Thread(target=self._watch, name="watchdog", daemon=True, args=(self._timeout,)).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    def _write(self) -> None:
        written: Any = None
        while not self._stopped.wait(self._pause):
            if (now := self._now[:2]) != written:
                with contextlib.suppress(DataError):  # a full disk is for the training itself to report
                    commit_bytes(self._folder / f"rank-{self._rank}.json", json.dumps(now).encode())
                    written = now
            if (self._folder / _STALLED).exists():
                self._stalled.set()

    def _watch(self, timeout: float) -> None:
        while not self._stopped.wait(self._pause):
            phase, _, since = self._now
            allowed = timeout * (_START_FACTOR if phase == "start" else 1)
            if time.monotonic() - since > allowed or self._stalled.is_set():
                threading.Timer(_WRITE_SECONDS, os._exit, (1,)).start()
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                self._last_words(allowed)
                # The launcher ends all ranks when one has ended: leave the others the time to write their stacks.
                time.sleep(2 * self._pause)
                os._exit(1)

    def _last_words(self, seconds: float) -> None:
        with (self._folder / f"rank-{self._rank}.stacks").open("w") as stacks:
            faulthandler.dump_traceback(stacks, all_threads=True)
        if not self._stalled.is_set():
            message = describe(self._folder, self._num_ranks, seconds)
            commit_bytes(self._folder / _STALLED, json.dumps(message).encode())
            print(f"error: {message}", file=sys.stderr, flush=True)


def describe(folder: Path, num_ranks: int, seconds: float) -> str:
    """Which rank waits for what; those that are furthest behind come first: they are what the others wait for."""
    found: dict[int, tuple[int, str]] = {}
    for rank in range(num_ranks):
        path = folder / f"rank-{rank}.json"
        phase, step = json.loads(path.read_text()) if path.is_file() else ("start", 0)
        found[rank] = (step, phase)
    order = list(PHASES)
    behind = sorted(found, key=lambda rank: (found[rank][0], order.index(found[rank][1])))
    parts = [f"rank {rank} {PHASES[found[rank][1]].format(found[rank][0])}" for rank in behind]
    first = [rank for rank in behind if found[rank] == found[behind[0]]]
    hint = f"; rank {', '.join(map(str, first))} is behind the others" if len(first) < num_ranks else ""
    return (
        f"no sign of life in {seconds:g} s (train.watchdog_timeout_s): {', '.join(parts)}{hint}\n"
        f"  fix: the stacks of the ranks, in {folder}, show where they stand"
    )


def stall_message(folder: Path) -> str | None:
    """What the watch wrote when it ended a training; None where it did not."""
    path = folder / _STALLED
    return str(json.loads(path.read_text())) if path.is_file() else None


def clear_signs(folder: Path) -> None:
    """Remove what an earlier start left; on one rank, before any other begins."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
