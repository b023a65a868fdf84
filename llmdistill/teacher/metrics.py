"""What a fleet does, as numbers: for Prometheus through Ray, and as lines of metrics.jsonl.

Both are counted where the fleet is driven, when a unit is known to be committed, so they agree with each other and lose
nothing with a replica that dies. Ray exports the first as `ray_llmdistill_…` on the metrics port of the driver's node.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from ray.util.metrics import Counter, Histogram

from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.replica import UnitResult

_SECONDS = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]
_PAUSE_SECONDS = 10.0
_TAGS = ("teacher", "replica")


class FleetMetrics:
    """Counters of one fleet, by teacher and replica; Ray must be connected."""

    def __init__(self, teacher: str) -> None:
        self._teacher = teacher
        self._counters = {
            name: Counter(f"llmdistill_{name}", description=text, tag_keys=_TAGS)
            for name, text in (
                ("records", "Records committed"),
                ("tokens", "Tokens of records committed, prompt and response"),
                ("rows", "Teacher distributions committed"),
                ("bytes", "Bytes of shards committed"),
                ("rejected", "Requests refused or given up"),
                ("filtered", "Responses dropped by teacher.filters"),
                ("restarts", "Engines that died or hung and were started anew"),
                ("replicas_lost", "Replicas that went with their nodes"),
            )
        }
        self._seconds = Histogram(
            "llmdistill_unit_seconds", "Seconds from giving a unit out to its commit", _SECONDS, tag_keys=_TAGS
        )

    def count(self, name: str, replica: int, count: int = 1) -> None:
        """Add to a counter."""
        if count:
            self._counters[name].inc(count, self._tags(replica))

    def add(self, replica: int, result: UnitResult, seconds: float) -> None:
        """Count a finished unit and the time that it took."""
        for name in ("records", "tokens", "rows", "bytes"):
            self.count(name, replica, getattr(result, name))
        self.count("rejected", replica, len(result.rejected))
        self.count("filtered", replica, len(result.filtered))
        self._seconds.observe(seconds, self._tags(replica))

    def _tags(self, replica: int) -> dict[str, str]:
        return {"teacher": self._teacher, "replica": str(replica)}


class MetricsLines:
    """Appends the state of a report to metrics.jsonl, every ten seconds and at the end.

    Args:
        path: the file.
        teacher: name of the teacher that the report is of.

    """

    def __init__(self, path: Path, teacher: str) -> None:
        self._path = path
        self._teacher = teacher
        self._next = time.monotonic() + _PAUSE_SECONDS

    def write(self, report: FleetReport, last: bool = False) -> None:
        """Append a line if it is time for one, or the last one."""
        if last or time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE_SECONDS
            with self._path.open("a") as stream:
                stream.write(json.dumps({"stage": "generate", "teacher": self._teacher, **report.figures()}) + "\n")
