"""The fleet: Ray actors that run replicas, fed with work units until every request has its record.

`run_fleet` is one job. A `Fleet` may stay for several, each with weights of its own: they are pushed into the engines
that run (the rounds of an on-policy training).

What can fail, and what happens then:

    a request is refused            it is rejected with its reason; too many of them end the job (max_rejected_share)
    an engine dies, hangs or errs   its replica is started anew with half as many units at once; its units are suspects
    a request kills engines         it is found by halving (see dispatch.py), quarantined and never asked again
    a node goes                     its units are given to others; the job goes on with the replicas that are left
    a node joins                    it gets replicas, as long as units wait and fewer than teacher.replicas run
    an engine does not start        three in a row end the job; so do more deaths in a row than a search needs
    SIGTERM                         units in flight are finished, then the job ends and says how to continue

Committed units stay in every case, and the same call continues.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError

from llmdistill.cache.shard import Compression
from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, EngineError, LLMDistillError
from llmdistill.teacher import placement
from llmdistill.teacher.dispatch import Dispatcher, Unit
from llmdistill.teacher.draining import drain_on_sigterm
from llmdistill.teacher.filters import fingerprint
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.metrics import FleetMetrics
from llmdistill.teacher.passed_over import read_passed_over, write_passed_over
from llmdistill.teacher.placement import Place
from llmdistill.teacher.replica import EngineFactory, FilterFactory, Replica, Target
from llmdistill.types import CaptureSpec, Request

MAX_FAILED_STARTS = 3
"""Engines in a row that do not even start."""

_LONGEST_REASON = 300
_POLL_SECONDS = 1.0
_NODE_SECONDS = 60.0
"""How long a fleet without any replica waits for a node."""
_CONTINUE = "finished shards are kept; run the same command again to continue"


def run_fleet(
    requests: Sequence[Request],
    make_engine: EngineFactory,
    teacher: TeacherConfig,
    cache: Path,
    spec: CaptureSpec,
    on_progress: Callable[[FleetReport], None],
    compression: Compression = "none",
    total: int | None = None,
    report: FleetReport | None = None,
    make_filter: FilterFactory | None = None,
    name: str = MAIN_TEACHER,
) -> FleetReport:
    """Get a record for every request, on the connected cluster; arguments as of `Fleet` and `Fleet.run`."""
    with Fleet(make_engine, teacher, make_filter, name) as fleet:
        return fleet.run(requests, Target(cache, spec, compression), on_progress, total, report)


class Fleet:
    """A fleet on the connected cluster, for one job or several. Its replicas are started with the first job that needs
    them, and stopped at the end of its context.

    The driver sees requests and counts only: replicas write the shards.

    Args:
        make_engine: makes a replica's engine, in the replica's process.
        teacher: sizes of the fleet.
        make_filter: makes what drops responses, in the replica's process; its settings are `teacher.filters`.
        name: of the teacher, for metrics.

    """

    def __init__(
        self,
        make_engine: EngineFactory,
        teacher: TeacherConfig,
        make_filter: FilterFactory | None = None,
        name: str = MAIN_TEACHER,
    ) -> None:
        self._teacher = teacher
        self._arguments = (make_engine, make_filter, name)
        self._replicas: _Replicas | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Free the engines; a later job starts them anew."""
        if self._replicas is not None:
            self._replicas.stop()
            self._replicas = None

    def cpus_in_use(self) -> Counter[str]:
        """Node id → CPUs that its replicas hold there."""
        return Counter() if self._replicas is None else self._replicas.cpus_in_use()

    def run(
        self,
        requests: Sequence[Request],
        target: Target,
        on_progress: Callable[[FleetReport], None] = lambda report: None,
        total: int | None = None,
        report: FleetReport | None = None,
        weights: Path | None = None,
    ) -> FleetReport:
        """Get a record for every request.

        Args:
            requests: what has no record yet.
            target: where the records go; its folder must be reachable from every node.
            on_progress: called about once a second and after every unit.
            total: requests of the whole corpus, of which `teacher.max_rejected_share` is a share; None: these requests.
            report: is filled, so that the caller has it when this fails, too.
            weights: a safetensors file, reachable from every node: every engine has these weights before it answers.
                None: those that it has.

        Returns:
            the report.

        Raises:
            ClusterError: the cluster is too small, or every node is gone.
            EngineError: engines do not start or die one after the other, too many requests are rejected, or SIGTERM
                came.
            DataError: shards cannot be written.

        """
        allowed = self._teacher.max_rejected_share * (len(requests) if total is None else total)
        report = FleetReport() if report is None else report
        requests = _without_passed_over(requests, self._teacher, target.cache, report)
        if not requests:
            return report
        dispatcher = Dispatcher(requests, self._teacher.requests_per_shard)
        if self._replicas is None:
            self._replicas = _Replicas(self._teacher, *self._arguments)
        replicas = self._replicas
        with drain_on_sigterm() as drain:
            try:
                replicas.begin(report, dispatcher, target, weights)
                replicas.start(placement.count_replicas(self._teacher, dispatcher.waiting()))
                while replicas.busy(drain):
                    replicas.wait(drain)
                    on_progress(report)
                    _limit_rejections(report, allowed)
            finally:
                if replicas.busy(drain):  # it failed: what is in flight would answer into the next job
                    self.stop()
                if report.passed_over:
                    write_passed_over(target.cache, report.passed_over)
            if drain.is_set():  # also when all is done: whatever comes next must not begin
                raise EngineError(f"stopped by SIGTERM after {report.records} records", fix=_CONTINUE)
        return report


def _without_passed_over(
    requests: Sequence[Request], teacher: TeacherConfig, cache: Path, report: FleetReport
) -> list[Request]:
    """The requests that earlier calls have not given up; the others are counted in the report."""
    filters, asked = fingerprint(teacher.filters), {request.key for request in requests}
    # What other teachers' filters dropped stays in the file; of our own responses, other filters dropped them before.
    report.passed_over = [
        entry for entry in read_passed_over(cache) if entry.filters in ("", filters) or entry.key not in asked
    ]
    entries = {entry.key: entry for entry in report.passed_over}
    for entry in [entries[request.key] for request in requests if request.key in entries]:
        (report.filtered if entry.filters else report.rejected).append(entry.row)
    return [request for request in requests if request.key not in entries]


def _limit_rejections(report: FleetReport, allowed: float) -> None:
    if len(report.rejected) > allowed:
        last = report.rejected[-1]
        raise EngineError(
            f"{len(report.rejected)} requests were rejected, more than teacher.max_rejected_share allows"
            f" ({allowed:g}); the last one: {last.reason}",
            where=last.source,
            fix=f"remove the cause or raise teacher.max_rejected_share; {_CONTINUE}",
        )


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


class _Replicas:
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
                fix=_CONTINUE,
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
            raise ClusterError("the nodes of all replicas are gone", fix=_CONTINUE)
        elif now - self._at_work > self._teacher.start_timeout_s:
            raise ClusterError(
                f"no replica found a place in {self._teacher.start_timeout_s} s: others use the cluster's resources",
                fix=f"wait for them, or raise teacher.start_timeout_s; {_CONTINUE}",
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
