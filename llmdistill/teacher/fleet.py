"""The fleet: Ray actors that run replicas, fed with work units until every request has its record."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from llmdistill.cache.shard import Compression
from llmdistill.cluster import require_resources
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import EngineError, LLMDistillError
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.replica import EngineFactory, Replica, UnitResult
from llmdistill.types import CaptureSpec, Request

MAX_RESTARTS = 3
"""Replicas that may die in one job before it gives up."""

_POLL_SECONDS = 1.0
_NO_CORES: tuple[int, ...] = ()


@dataclass
class FleetReport:
    """What a job did."""

    records: int = 0
    tokens: int = 0
    rows: int = 0
    bytes: int = 0
    restarts: int = 0
    seconds: float = 0.0
    """From the first replica being ready to the last record."""
    rejected: list[RejectedRow] = field(default_factory=list)

    def add(self, result: UnitResult) -> None:
        """Count a finished unit."""
        self.records += result.records
        self.tokens += result.tokens
        self.rows += result.rows
        self.bytes += result.bytes
        self.rejected.extend(result.rejected)


def count_replicas(teacher: TeacherConfig, units: int) -> int:
    """Replicas to start on the connected cluster, never more than there are work units.

    Raises:
        ClusterError: the cluster holds fewer than asked for.

    """
    resource = _resource()
    available = int(ray.cluster_resources().get(resource, 0))
    asked = max(available // teacher.tensor_parallel, 1) if teacher.replicas == "auto" else teacher.replicas
    require_resources(
        f"the teacher fleet ({asked} × tensor_parallel {teacher.tensor_parallel})",
        {resource: asked * teacher.tensor_parallel},
        fix="lower teacher.replicas or teacher.tensor_parallel, or use a larger cluster",
    )
    return max(min(asked, units), 1)


def run_fleet(
    requests: Sequence[Request],
    make_engine: EngineFactory,
    teacher: TeacherConfig,
    cache: Path,
    spec: CaptureSpec,
    on_progress: Callable[[FleetReport], None],
    compression: Compression = "none",
) -> FleetReport:
    """Get a record for every request, on the connected cluster.

    The driver sees requests and counts only: replicas write the shards. A replica that dies is started anew and its
    unfinished units are given out again; finished ones are committed and stay.

    Args:
        requests: what has no record yet.
        make_engine: makes a replica's engine, in the replica's process.
        teacher: sizes of the fleet.
        cache: folder of the cache, reachable from every node.
        spec: what is captured.
        on_progress: called about once a second and after every unit.
        compression: of the shards.

    Raises:
        ClusterError: the cluster is too small.
        EngineError: replicas died more than `MAX_RESTARTS` times.
        DataError: shards cannot be written.

    """
    size = teacher.requests_per_shard
    units = deque(requests[i : i + size] for i in range(0, len(requests), size))
    fleet = _Fleet(units, make_engine, teacher, cache, spec, compression)
    try:
        for index in range(count_replicas(teacher, len(units))):
            fleet.start_replica(index)
        while fleet.busy():
            fleet.wait()
            on_progress(fleet.report)
    finally:
        fleet.stop()
    return fleet.report


@dataclass
class _Handle:
    index: int
    actor: Any
    ready: bool = False
    units: int = 0


class _Fleet:
    def __init__(
        self,
        units: deque[Sequence[Request]],
        make_engine: EngineFactory,
        teacher: TeacherConfig,
        cache: Path,
        spec: CaptureSpec,
        compression: Compression,
    ) -> None:
        self.report = FleetReport()
        self._units = units
        self._arguments = (make_engine, cache, spec, compression)
        self._teacher = teacher
        self._pending: dict[Any, tuple[_Handle, Sequence[Request] | None]] = {}
        self._handles: list[_Handle] = []
        self._first_ready: float | None = None

    def start_replica(self, index: int) -> None:
        width = self._teacher.tensor_parallel
        if _resource() == "GPU":
            options, cores = {"num_gpus": width, "num_cpus": 1}, _NO_CORES
        else:
            per_node = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes()))
            options = {"num_cpus": width}
            cores = tuple((index * width + core) % per_node for core in range(width))
        actor: Any = ray.remote(Replica).options(**options).remote(*self._arguments, cores)
        handle = _Handle(index, actor)
        self._handles.append(handle)
        self._pending[actor.start.remote()] = (handle, None)

    def busy(self) -> bool:
        return bool(self._units or any(unit is not None for _, unit in self._pending.values()))

    def wait(self) -> None:
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_SECONDS)
        for reference in done:
            if reference not in self._pending:
                continue  # its replica died, and this went back with it
            handle, unit = self._pending.pop(reference)
            try:
                result = ray.get(reference)
            except (RayActorError, RayTaskError) as error:
                self._restart(handle, unit, error)
                continue
            if unit is None:
                handle.ready = True
                self._first_ready = self._first_ready or time.monotonic()
            else:
                handle.units -= 1
                self.report.add(result)
            self._fill(handle)
        if self._first_ready is not None:
            self.report.seconds = time.monotonic() - self._first_ready

    def stop(self) -> None:
        stopping = [handle.actor.stop.remote() for handle in self._handles if handle.ready]
        ray.wait(stopping, num_returns=len(stopping), timeout=20) if stopping else None
        for handle in self._handles:
            ray.kill(handle.actor)

    def _fill(self, handle: _Handle) -> None:
        while self._units and handle.ready and handle.units < self._teacher.units_in_flight:
            unit = self._units.popleft()
            self._pending[handle.actor.run_unit.remote(unit)] = (handle, unit)
            handle.units += 1

    def _restart(self, handle: _Handle, unit: Sequence[Request] | None, error: Exception) -> None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, LLMDistillError) and not isinstance(cause, EngineError):
            raise cause  # a full disk does not go away by itself
        self.report.restarts += 1
        if self.report.restarts > MAX_RESTARTS:
            reason = str(cause if isinstance(cause, EngineError) else error).strip()
            raise EngineError(
                f"replicas of the teacher failed {self.report.restarts} times; the last one: {reason}",
                fix="finished shards are kept; run the same command again when the cause is gone",
            )
        lost = [other for other, (owner, _) in self._pending.items() if owner is handle]
        units = [unit] + [self._pending.pop(other)[1] for other in lost]
        self._units.extendleft(unit for unit in units if unit is not None)
        self._handles.remove(handle)
        ray.kill(handle.actor)
        self.start_replica(handle.index)


def _resource() -> str:
    return "GPU" if ray.cluster_resources().get("GPU", 0) else "CPU"
