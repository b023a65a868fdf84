"""Prometheus metrics of a replica, on the ports where Ray exports those of its nodes, as `ray_llmdistill_…`."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

_SECONDS = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]


class ReplicaMetrics:
    """Counts what one replica does."""

    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"llmdistill_{name}", description=f"{text} by the teacher's replicas")
            for name, text in (
                ("records", "Records committed"),
                ("tokens", "Tokens of records committed"),
                ("bytes", "Bytes of shards committed"),
                ("rejected", "Requests refused"),
                ("filtered", "Responses dropped"),
            )
        }
        self._seconds = Histogram("llmdistill_unit_seconds", "Seconds that a work unit took", boundaries=_SECONDS)

    def add(self, counts: dict[str, int], seconds: float) -> None:
        """Count a finished unit: by the names of the counters, and the time that it took."""
        for name, count in counts.items():
            if count:
                self._counters[name].inc(count)
        self._seconds.observe(seconds)
