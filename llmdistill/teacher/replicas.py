"""The replicas of a fleet: started, fed, replaced when they die, moved when their nodes go. See `fleet.py`."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, EngineError, LLMDistillError
from llmdistill.teacher import placement
from llmdistill.teacher.dispatch import Dispatcher, Unit
from llmdistill.teacher.filters import fingerprint
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.metrics import FleetMetrics
from llmdistill.teacher.placement import Place
from llmdistill.teacher.replica import EngineFactory, FilterFactory, Replica, Target

MAX_FAILED_STARTS = 3
"""Engines in a row that do not even start."""

_LONGEST_REASON = 300
_POLL_SECONDS = 1.0
_NODE_SECONDS = 60.0
"""How long a fleet without any replica waits for a node."""
CONTINUE = "finished shards are kept; run the same command again to continue"
"""What a person can do when a job ends before its time."""


@dataclass(eq=False)
class _Handle:
    index: int
    actor: Any
    limit: int
    """Units that it may hold at once."""
    nodes_lost: int
    """Nodes that the cluster had lost before it was asked for."""
    place: Place
    node: str = ""
    """Where it runs; unknown until Ray has placed it."""
    cores: tuple[int, ...] = ()
    """Of that node; none on GPUs."""
    weights: Path | None = None
    """What was pushed into its engine; None: those that it was loaded with."""
    ready: bool = False
    """Its engine is loaded and has the weights of the job."""

    def lacks(self, nodes: placement.Nodes) -> bool:
        """Is it, or a stage of it, on a node that is not among these?"""
        return any(node not in nodes for node in (self.node, *self.place.stages) if node)

    def kill(self) -> None:
        ray.kill(self.actor)
        if self.place.group is not None:
            ray.util.remove_placement_group(self.place.group)


@dataclass
class _Call:
    """Something that a replica was asked to do."""

    handle: _Handle
    unit: Unit | None
    """None: to come into being, to start its engine, or to take weights."""
    deadline: float
    started: float = field(default_factory=time.monotonic)
    pushed: bool = False
    """It is to take weights."""


class Replicas:
    """The replicas of a fleet and the job that they are at."""

    report: FleetReport
    dispatcher: Dispatcher

    def __init__(
        self, teacher: TeacherConfig, make_engine: EngineFactory, make_filter: FilterFactory | None, name: str
    ) -> None:
        self._arguments = (make_engine, make_filter)
        self._metrics = FleetMetrics(name)
        self._filters = fingerprint(teacher.filters)
        self._teacher = teacher
        self._target: Target | None = None
        self._weights: Path | None = None
        self._calls: dict[Any, _Call] = {}
        self._handles: dict[int, _Handle] = {}
        self._limits: defaultdict[int, int] = defaultdict(lambda: teacher.units_in_flight)
        """Units at once by replica: those of its successor, too."""
        self._failed_starts = 0
        self._first_ready: float | None = None
        self._nodes = placement.living_nodes()
        self._looked = self._at_work = time.monotonic()
        """When the nodes were looked at, and when a replica was last known on one."""

    def begin(self, report: FleetReport, dispatcher: Dispatcher, target: Target, weights: Path | None = None) -> None:
        """Take up a job; there is none, or the one before is done."""
        self.report, self.dispatcher, self._target = report, dispatcher, target
        self._weights = self._weights if weights is None else weights
        self._nodes = placement.living_nodes()
        self._looked = self._at_work = time.monotonic()
        ready = [handle for handle in self._handles.values() if handle.ready]
        self._first_ready = time.monotonic() if ready else None
        for handle in ready:
            self._give_weights(handle)

    def start(self, count: int) -> None:
        """Start what is missing of so many replicas."""
        for index in range(count):
            if index not in self._handles:
                self._start_replica(index)

    def busy(self, drain: threading.Event) -> bool:
        return self.dispatcher.flying() > 0 if drain.is_set() else self.dispatcher.busy()

    def wait(self, drain: threading.Event) -> None:
        if not drain.is_set():
            self._fill()
        if self._calls:
            done, _ = ray.wait(list(self._calls), num_returns=1, timeout=_POLL_SECONDS)
        else:
            done = []
            time.sleep(_POLL_SECONDS)
        for reference in done:
            call = self._calls.pop(reference)
            try:
                result = ray.get(reference)
            except RayError as error:
                self._lose(call, _reason(error))
            else:
                self._answered(call, result)
        now = time.monotonic()
        for call in [call for call in self._calls.values() if call.deadline < now]:
            if call.handle in self._handles.values():
                self._lose(call, "it gave no sign of life in time")
        if now - self._looked >= _POLL_SECONDS:
            self._look_at_nodes(now, drain)
        if self._first_ready is not None:
            self.report.seconds = now - self._first_ready

    def stop(self) -> None:
        stopping = [handle.actor.stop.remote() for handle in self._handles.values() if handle.ready]
        ray.wait(stopping, num_returns=len(stopping), timeout=20) if stopping else None
        for handle in self._handles.values():
            handle.kill()

    def cpus_in_use(self) -> Counter[str]:
        """See `Fleet`."""
        each = self._teacher.tensor_parallel if placement.resource(self._teacher, self._nodes) == "CPU" else 1
        found: Counter[str] = Counter()
        for handle in self._handles.values():
            found[handle.node] += each
        return found

    def _start_replica(self, index: int) -> None:
        taken = Counter(node for handle in self._handles.values() for node in handle.place.stages)
        place = placement.find_place(self._teacher, self._nodes, taken)
        if place is None:
            return  # until the next look at the nodes
        actor: Any = ray.remote(Replica).options(**place.options).remote(*self._arguments)
        handle = _Handle(index, actor, self._limits[index], placement.nodes_lost(), place)
        self._handles[index] = handle
        # Ray may wait for as long as others use the cluster; the replicas that have a place work meanwhile.
        self._calls[actor.node.remote()] = _Call(handle, None, math.inf)

    def _answered(self, call: _Call, result: Any) -> None:
        handle = call.handle
        if call.unit is not None:
            self.dispatcher.finished(handle.index, call.unit)
            self.report.add(handle.index, result, self._filters)
            self._metrics.add(handle.index, result, time.monotonic() - call.started)
        elif handle.node:
            self._failed_starts = 0
            seconds = time.monotonic() - call.started
            if call.pushed:
                self.report.push_seconds = max(self.report.push_seconds, seconds)
            else:
                self.report.start_seconds = max(self.report.start_seconds, seconds)
            self._give_weights(handle)
            if handle.ready:
                self._first_ready = self._first_ready or time.monotonic()
        else:
            handle.node = result
            self._nodes = placement.living_nodes()
            if result not in self._nodes:
                self._lose_node(handle)
                return
            if placement.resource(self._teacher, self._nodes) == "CPU":
                taken = {core for other in self._handles.values() if other.node == result for core in other.cores}
                handle.cores = placement.free_cores(self._teacher, self._nodes[result], taken)
            deadline = time.monotonic() + self._teacher.start_timeout_s
            self._calls[handle.actor.start.remote(handle.cores)] = _Call(handle, None, deadline)

    def _give_weights(self, handle: _Handle) -> None:
        """Push the job's weights into a running engine, unless it has them."""
        handle.ready = handle.weights == self._weights
        if not handle.ready:
            handle.weights = self._weights
            deadline = time.monotonic() + self._teacher.start_timeout_s
            self._calls[handle.actor.load_weights.remote(self._weights)] = _Call(handle, None, deadline, pushed=True)

    def _fill(self) -> None:
        for handle in self._handles.values():
            while handle.ready and (unit := self.dispatcher.take(handle.index, handle.limit)):
                deadline = time.monotonic() + self._teacher.unit_timeout_s
                self._calls[handle.actor.run_unit.remote(unit.requests, self._target)] = _Call(handle, unit, deadline)

    def _lose(self, call: _Call, reason: str) -> None:
        """A replica is dead, hangs, or returned something impossible: take back what it had, and start another."""
        handle = call.handle
        # One that was on its way to a node cannot say to which.
        on_its_way = not handle.node and placement.nodes_lost() > handle.nodes_lost
        if on_its_way or handle.lacks(placement.living_nodes()):
            self._lose_node(handle)
            return
        self._forget(handle)
        self.report.deaths.append(reason)
        self._metrics.count("restarts", handle.index)
        if call.unit is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise EngineError(f"{MAX_FAILED_STARTS} engines in a row did not start; the last one: {reason}")
        for request in self.dispatcher.died(handle.index):
            self.report.quarantine(request, reason)
            self._metrics.count("rejected", handle.index)
        if self.dispatcher.deaths_in_a_row > self.dispatcher.deaths_allowed:
            raise EngineError(
                f"{self.dispatcher.deaths_in_a_row} engines died one after the other and nothing was finished between;"
                f" the last one: {reason}",
                fix=CONTINUE,
            )
        # Less at once may be what it takes, for instance where memory ran out.
        self._limits[handle.index] = max(handle.limit // 2, 1)
        self._start_replica(handle.index)

    def _lose_node(self, handle: _Handle) -> None:
        self._forget(handle)
        self.dispatcher.returned(handle.index)
        if handle.node:
            self.report.lost += 1
            self._metrics.count("replicas_lost", handle.index)

    def _forget(self, handle: _Handle) -> None:
        self._calls = {key: other for key, other in self._calls.items() if other.handle is not handle}
        del self._handles[handle.index]
        handle.kill()

    def _look_at_nodes(self, now: float, drain: threading.Event) -> None:
        """Take back what lost nodes had, and start replicas where there is room: nodes may join at any time.

        Raises:
            ClusterError: no replica finds a place.

        """
        self._looked, self._nodes = now, placement.living_nodes()
        for handle in [handle for handle in self._handles.values() if handle.lacks(self._nodes)]:
            self._lose_node(handle)
        room = placement.room(self._teacher, self._nodes)
        starting = sum(not handle.ready for handle in self._handles.values())
        missing = placement.most(self._teacher, room) - len(self._handles)
        for _ in range(min(missing, self.dispatcher.waiting() - starting)):
            if not drain.is_set():
                self._start_replica(next(index for index in itertools.count() if index not in self._handles))
        if any(handle.node for handle in self._handles.values()):
            self._at_work = now
        elif not room and now - self._at_work > _NODE_SECONDS:
            raise ClusterError("the nodes of all replicas are gone", fix=CONTINUE)
        elif now - self._at_work > self._teacher.start_timeout_s:
            raise ClusterError(
                f"no replica found a place in {self._teacher.start_timeout_s} s: others use the cluster's resources",
                fix=f"wait for them, or raise teacher.start_timeout_s; {CONTINUE}",
            )


def _reason(error: RayError) -> str:
    """What to tell a person, in a line.

    Raises:
        LLMDistillError: what no restart can mend, such as a full disk.

    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, LLMDistillError) and not isinstance(cause, EngineError):
        raise cause
    if isinstance(cause, EngineError):
        return str(cause)
    if isinstance(error, RayActorError):
        # Ray's first lines say that it died and which it was; then come a line or two that say why.
        why = [line for line in str(error).splitlines()[1:] if line and not line.startswith("\t")]
        return f"its process died ({' '.join(why)[:_LONGEST_REASON] or error})"
    return f"{type(cause or error).__name__}: {str(cause or error).strip()}"
