"""A job of the fleet for tests, in a process of its own: `python -m tests.teacher.fleet_job ADDRESS FOLDER`.

Its engines answer two units each, then wait until FOLDER/open exists. FOLDER/waiting holds a file for each process
that waits, named `ADDRESS-PID`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from pathlib import Path

import ray

from llmdistill.cluster import ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.teacher.fake_engine import FakeEngine
from llmdistill.teacher.fleet import run_fleet
from llmdistill.types import CaptureSpec, Record, Request

CAPTURE = CaptureConfig(kind="head_tail", draws=20)
SPEC = CaptureSpec(
    "generate",
    vocabulary_size=500,
    teacher="t",
    tokenizer="k",
    engine="fake",
    dtype="float32",
    **CAPTURE.spec_fields(),
)
TEACHER = TeacherConfig.model_validate(
    {"model": "x", "requests_per_shard": 4, "units_in_flight": 2, "sampling": {"max_new_tokens": 6, "temperature": 1.0}}
)
REQUESTS = [Request(n.to_bytes(16, "big"), (n % 90 + 1, 7), f"a:{n}", seed=n, split=n) for n in range(80)]
_FREE = 2 * TEACHER.requests_per_shard


class GatedEngine(FakeEngine):
    """Answers so many requests, and the others when the gate opens."""

    def __init__(self, folder: Path | None, cores: tuple[int, ...] = ()) -> None:
        super().__init__(TEACHER, CAPTURE, vocabulary_size=SPEC.vocabulary_size, end_token_id=2)
        self._folder = folder
        self._asked = 0

    async def answer(self, request: Request) -> Record:
        self._asked += 1
        if self._folder is not None and self._asked > _FREE:
            waiting = self._folder / "waiting"
            waiting.mkdir(exist_ok=True)
            (waiting / f"{ray.util.get_node_ip_address()}-{os.getpid()}").touch()
            while not (self._folder / "open").exists():
                await asyncio.sleep(0.1)
        return await super().answer(request)


def main() -> None:
    """Run it, and leave FOLDER/cache and FOLDER/report.json."""
    address, folder = sys.argv[1], Path(sys.argv[2])
    with ray_cluster(ClusterConfig(address=address)):
        factory = functools.partial(GatedEngine, folder)
        report = run_fleet(REQUESTS, factory, TEACHER, folder / "cache", SPEC, lambda report: None)
    counts = {name: getattr(report, name) for name in ("records", "restarts", "lost")}
    (folder / "report.json").write_text(json.dumps({**counts, "rejected": len(report.rejected)}))
    print(report.deaths)


if __name__ == "__main__":
    main()
