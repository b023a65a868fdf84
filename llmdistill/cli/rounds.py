"""Training in rounds: the student writes, the teacher scores, the student trains.

A round is prepared in RUN/rounds/0003: `weights.safetensors` of the student that writes, `rollouts` (a cache of what it
wrote), `cache` (the same text, scored by the teacher) and at last `round.json`. Every part is continued by the next
call where it was left. Trainers begin when `round.json` is there, and end with a checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.cache.index import committed_keys, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.storage import commit_bytes
from llmdistill.cli import stages
from llmdistill.cli.student import make_untrained
from llmdistill.cli.teachers import capture_spec
from llmdistill.cluster import ray_cluster
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ClusterError, DataError, EngineError
from llmdistill.observe.progress import Progress
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.rounds import Round, round_cache, round_folder
from llmdistill.types import CaptureSpec, Request

if TYPE_CHECKING:
    from llmdistill.cli.stages import Run
    from llmdistill.teacher.fleet import Fleet
    from llmdistill.teacher.fleet_report import FleetReport
    from llmdistill.trainer.job import TrainJob

_FACTS = "round.json"
_WEIGHTS = "weights.safetensors"
_ROLLOUTS = "rollouts"


def train_in_rounds(run: Run, config: RoundsConfig) -> None:
    """Train the student in rounds, and the baseline for as many steps on the teacher's text.

    Raises:
        ClusterError: the cluster does not hold what is asked for at once.
        DataError: rounds of another training lie in the run's folder; too few prompts.

    """
    make_untrained(run)
    student, *baselines = stages.training_jobs(run)
    with ray_cluster(run.config.cluster):
        with _Rounds(run, config, student) as rounds:
            rounds.train()
        for job in baselines:
            whole = RoundsConfig(count=1, steps=config.total_steps, prompts=1, on_policy=(0.0, 0.0))
            stages.train_on_cluster(run, dataclasses.replace(job, round=Round(whole, 0, run.folder.rounds)))


class _Rounds:
    def __init__(self, run: Run, config: RoundsConfig, job: TrainJob) -> None:
        from llmdistill.prompts.keys import model_fingerprint
        from llmdistill.prompts.render import load_tokenizer
        from llmdistill.prompts.rollouts import training_prompts
        from llmdistill.teacher.engines import make_engine
        from llmdistill.teacher.filters import ResponseFilter
        from llmdistill.teacher.fleet import Fleet

        self._run, self._config, self._job = run, config, job
        self._keep_student, self._keep_teacher = _kept(run.config.teacher, config, run.config.train.workers)
        tokenizer = load_tokenizer(run.tokenizer_folder)
        captured = capture_spec(run.config, run.config.teacher, run.tokenizer_folder, tokenizer)
        self._scored = dataclasses.replace(captured, mode="score", sampling={})
        teacher, writer, kept = run.config.teacher, _writer(run, config), CaptureConfig(top_k=1, logprobs="f16")
        self._written = dataclasses.replace(
            self._scored,
            mode="generate",
            teacher=model_fingerprint(run.folder.untrained),
            engine=writer.engine,
            sampling=writer.sampling.model_dump(exclude={"samples", "seed"}),
            **kept.spec_fields(),
        )
        self._prompts = training_prompts(run.config.prompts, tokenizer, writer, self._written, config)
        ends = len(tokenizer), tokenizer.eos_token_id
        write = functools.partial(make_engine, run.folder.untrained, writer, kept, *ends)
        chosen = writer.filters != type(writer.filters)()
        filters = functools.partial(ResponseFilter, writer.filters, run.tokenizer_folder) if chosen else None
        score = functools.partial(make_engine, run.tokenizer_folder, teacher, run.config.capture, *ends)
        self._student, self._teacher = Fleet(write, writer, filters, "student"), Fleet(score, teacher)
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1) if config.ahead else None
        self._identity = dataclasses.replace(job, round=Round(config, 0, run.folder.rounds)).identity("")
        self._require_ours()

    def __enter__(self) -> _Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._student.stop()
        self._teacher.stop()

    def train(self) -> None:
        """All rounds that are left."""
        from llmdistill.trainer.checkpoint import latest_checkpoint, read_state

        def done() -> int:
            newest = latest_checkpoint(self._job.checkpoints)
            return 0 if newest is None else read_state(newest).step

        following: Future[dict[str, Any]] | None = None
        waited, worked = 0.0, 0.0
        for number in range(done() // self._config.steps, self._config.count):
            started = time.monotonic()
            facts = self._prepare(number) if following is None else following.result()
            waiting = time.monotonic() - started
            following = None
            if self._pool is not None and number + 1 < self._config.count:
                self._weights(number + 1)
                following = self._pool.submit(self._prepare, number + 1, quiet=True)
            self._note(number, {**facts, "wait_seconds": round(waiting, 3)})
            started = time.monotonic()
            current = Round(self._config, number, self._run.folder.rounds)
            busy = self._student.cpus_in_use() + self._teacher.cpus_in_use()
            job = dataclasses.replace(self._job, round=current, pause=current.last_step)
            stages.train_on_cluster(self._run, job, busy)
            waited, worked = waited + waiting, worked + time.monotonic() - started
            if done() < current.last_step:
                break  # stopped early
        if worked:
            share = waited / (waited + worked)
            stages.say(f"train: the trainers waited {share:.0%} of the time for the student's text and its scores")
            self._note(None, {"stage": "rounds", "wait_seconds": round(waited, 3), "wait_share": round(share, 4)})

    def _prepare(self, number: int, quiet: bool = False) -> dict[str, Any]:
        """Have a round's text written and scored; returns what is known of it."""
        from llmdistill.prompts.rollouts import rollout_requests, score_requests

        folder = round_folder(self._run.folder.rounds, number)
        step = self._config.written_at(number)
        if (folder / _FACTS).is_file():
            known: dict[str, Any] = json.loads((folder / _FACTS).read_text())
            return known
        weights = self._weights(number)
        written = dataclasses.replace(self._written, teacher=f"{self._written.teacher}@{step}")
        requests = rollout_requests(self._prompts, written, self._config, number)
        started = time.monotonic()
        writing = self._ask(
            self._student, requests, folder / _ROLLOUTS, written, number, "the student writes", quiet, weights
        )
        if not self._keep_student:
            self._student.stop()
        rollouts_seconds, started = time.monotonic() - started, time.monotonic()
        scores = score_requests(_written(folder / _ROLLOUTS), self._scored, step)
        cache = round_cache(self._run.folder.rounds, number)
        scoring = self._ask(self._teacher, scores, cache, self._scored, number, "the teacher scores", quiet)
        if not self._keep_teacher:
            self._teacher.stop()
        facts = {
            "stage": "round",
            "round": number,
            "student_step": step,
            "oldest_at_end": (number + 1) * self._config.steps - step,
            "on_policy": self._config.share(number),
            "records": len(scores),
            "rejected": len(writing.rejected) + len(scoring.rejected),
            "written_tokens": writing.tokens,
            "student_start_seconds": round(writing.start_seconds, 3),
            "push_seconds": round(writing.push_seconds, 3),
            "rollout_seconds": round(rollouts_seconds, 3),
            "teacher_start_seconds": round(scoring.start_seconds, 3),
            "score_seconds": round(time.monotonic() - started, 3),
        }
        commit_bytes(folder / _FACTS, (json.dumps(facts, indent=1) + "\n").encode())
        (folder / _WEIGHTS).unlink(missing_ok=True)
        return facts

    def _ask(
        self,
        fleet: Fleet,
        requests: list[Request],
        cache: Path,
        spec: CaptureSpec,
        number: int,
        what: str,
        quiet: bool,
        weights: Path | None = None,
    ) -> FleetReport:
        from llmdistill.prompts.rejects import write_rejected
        from llmdistill.teacher.fleet_report import FleetReport
        from llmdistill.teacher.replica import Target

        committed = committed_keys(cache, spec)
        pending = [request for request in requests if request.key not in committed]
        report, already = FleetReport(), len(requests) - len(pending)
        target = Target(cache, spec, self._run.config.capture.compression)

        def run(show: Callable[[FleetReport], None]) -> None:
            fleet.run(pending, target, show, len(requests), report, weights)

        def checked(report: FleetReport) -> None:
            if self._stopping.is_set():
                raise EngineError("stopped", fix="run the same command again to continue")

        try:
            if quiet:
                run(checked)
            else:
                title = f"train round {number + 1}/{self._config.count}: {what}"
                with Progress(title, len(requests), "records", already) as progress:
                    run(lambda report: progress.update(already + report.records, report.note()))
        finally:
            if report.rejected:
                write_rejected(cache / "rejected.jsonl", report.rejected)
        write_index(cache)
        return report

    def _weights(self, number: int) -> Path | None:
        """The weights of the student that writes for a round; None: its first ones.

        They are written down while their checkpoint is there: training goes on and removes it.
        """
        from llmdistill.export.huggingface import write_weights
        from llmdistill.trainer.checkpoint import checkpoint_folder

        step = self._config.written_at(number)
        file = round_folder(self._run.folder.rounds, number) / _WEIGHTS
        if not step:
            return None
        if not file.is_file():
            checkpoint = checkpoint_folder(self._job.checkpoints, step)
            if not checkpoint.is_dir():
                raise DataError(f"round {number} needs this checkpoint, which is gone", where=str(checkpoint))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_weights(checkpoint, self._run.folder.untrained, file)
        return file

    def _require_ours(self) -> None:
        """Refuse the rounds of another training."""
        owner, mine = self._run.folder.rounds / "training.json", json.dumps(self._identity, sort_keys=True, indent=1)
        if not owner.is_file():
            owner.parent.mkdir(parents=True, exist_ok=True)
            commit_bytes(owner, mine.encode())
        elif owner.read_text() != mine:
            raise DataError(
                "the rounds belong to a training with other settings",
                where=str(owner.parent),
                fix=f"go back to {owner.name}, choose another output folder, or remove {owner.parent} and the"
                " checkpoints",
            )

    def _note(self, number: int | None, line: Mapping[str, Any]) -> None:
        """Write a line of metrics, once for each round."""
        path = self._run.folder.metrics
        if number is None or all(line.get("round") != number for line in read_metrics(path)):
            with path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def _written(rollouts: Path) -> Iterator[tuple[bytes, list[int], list[bool], int]]:
    """What the student wrote, as of `score_requests`."""
    reader = CacheReader(rollouts)
    for number in range(len(reader)):
        record = reader.read(number)
        yield record.key, record.token_ids_N.tolist(), record.supervised_N.tolist(), int(reader.splits[number])


def _writer(run: Run, config: RoundsConfig) -> TeacherConfig:
    """The student as a fleet's teacher."""
    changes = {
        "model": str(run.folder.untrained),
        "engine": config.engine,
        "server": None,
        "replicas": config.replicas,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "sampling": config.sampling,
        "filters": config.filters,
    }
    return run.config.teacher.model_copy(update=changes)


def _kept(teacher: TeacherConfig, config: RoundsConfig, workers: int) -> tuple[bool, bool]:
    """Whether the student's and the teacher's engines stay while others work; Ray is connected.

    Raises:
        ClusterError: `rounds.ahead` wants both beside the trainers, and there is no room.

    """
    import ray

    resources = ray.cluster_resources()
    what = "GPU" if resources.get("GPU", 0) else "CPU"
    # Engines that ask a server take none of the cluster's devices; `auto` takes all that is free.
    width = 0 if teacher.server else teacher.tensor_parallel * teacher.pipeline_parallel
    count = 1 if teacher.replicas == "auto" else teacher.replicas
    held, both = resources.get(what, 0), config.replicas + width * count
    if config.ahead and held < both + workers:
        raise ClusterError(
            f"rounds.ahead keeps {config.replicas} replicas of the student, {count} of the teacher with {width} {what}"
            f" each, and {workers} training workers at once: {both + workers:g} {what}; the cluster has {held:g}",
            where="rounds.ahead",
            fix="leave it out to work in turn, or use a larger cluster",
        )
    keep_teacher = held >= both + workers and (teacher.replicas != "auto" or config.ahead)
    return held >= config.replicas + max(width, workers), keep_teacher
