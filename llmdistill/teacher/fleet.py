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

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from llmdistill.cache.shard import Compression
from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import EngineError
from llmdistill.teacher import placement
from llmdistill.teacher.dispatch import Dispatcher
from llmdistill.teacher.draining import drain_on_sigterm
from llmdistill.teacher.filters import fingerprint
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.passed_over import read_passed_over, write_passed_over
from llmdistill.teacher.replica import EngineFactory, FilterFactory, Target
from llmdistill.teacher.replicas import CONTINUE, Replicas
from llmdistill.types import CaptureSpec, Request


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
        self._replicas: Replicas | None = None

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
            self._replicas = Replicas(self._teacher, *self._arguments)
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
                raise EngineError(f"stopped by SIGTERM after {report.records} records", fix=CONTINUE)
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
            fix=f"remove the cause or raise teacher.max_rejected_share; {CONTINUE}",
        )
