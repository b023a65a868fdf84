"""The stages of a run, each from its inputs on disk to its outputs on disk.

The order is generate → train → export → evaluate → report.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.cache.index import INDEX, Capture, committed_keys, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cli.teachers import AskedTeacher, asked_teachers, teacher_folder
from llmdistill.cluster import CAPTURE, SHARE, TRAIN, ray_cluster
from llmdistill.config.export import ExportConfig
from llmdistill.config.objectives import AnyObjective, SequenceCEConfig, needs_teacher
from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.run import RunConfig
from llmdistill.config.train import TrainConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.observe.progress import Progress
from llmdistill.observe.run_folder import RunFolder

if TYPE_CHECKING:
    from llmdistill.teacher.fleet_report import FleetReport
    from llmdistill.trainer.job import TrainJob
    from llmdistill.types import Request


@dataclass(frozen=True)
class Run:
    """What every stage works on."""

    config: RunConfig
    folder: RunFolder

    @functools.cached_property
    def teacher_folder(self) -> Path:
        """The teacher as a model folder."""
        from llmdistill.teacher.source import resolve_teacher

        return resolve_teacher(self.config.teacher.model)

    @functools.cached_property
    def tokenizer_folder(self) -> Path:
        """The teacher's configuration and tokenizer; its weights lie there, too, where no server has them."""
        if self.config.teacher.server is None:
            return self.teacher_folder
        return teacher_folder(self.config.teacher, MAIN_TEACHER)

    @property
    def own_tokenizer(self) -> bool:
        """The student has another tokenizer than the teacher."""
        return self.config.student.tokenizer == "own"

    @property
    def training_cache(self) -> Path:
        """The records in the student's tokens."""
        return self.folder.student_cache if self.own_tokenizer else self.folder.cache


BASELINE = "sft"
"""The baseline: the same student and steps, cross-entropy on the same responses only."""


def generate(run: Run) -> None:
    """Fill the cache: one record for every prompt (and sample) of the corpus, by the teachers in turn."""
    from llmdistill.cli.student import require_tokenizers
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.rejects import counts_by_kind, write_rejected
    from llmdistill.prompts.render import load_tokenizer
    from llmdistill.prompts.requests import make_requests
    from llmdistill.prompts.rollouts import of_training
    from llmdistill.teacher.fleet_report import FleetReport

    config = run.config
    tokenizer = load_tokenizer(run.tokenizer_folder)
    require_tokenizers(run)
    teachers = asked_teachers(config, run.tokenizer_folder, tokenizer)
    corpus = make_requests(
        read_prompts(config.prompts),
        tokenizer,
        config.prompts,
        {name: (one.config, one.spec) for name, one in teachers.items()},
    )
    rejected = corpus.rejected
    write_rejected(run.folder.rejected, rejected)
    if config.rounds is not None:  # before the teacher is paid
        of_training(corpus.requests, config.prompts, config.rounds)
    done = committed_keys(run.folder.cache, *(one.spec for one in teachers.values()))
    for teacher in teachers.values():
        requests = [request for request in corpus.requests if request.teacher == teacher.name]
        pending = [request for request in requests if request.key not in done]
        if not pending:
            continue
        # Its presence says that no more shards will come, to a training that waits for them.
        (run.folder.cache / INDEX).unlink(missing_ok=True)
        report, stage = FleetReport(), "generate" if len(teachers) == 1 else f"generate {teacher.name}"
        try:
            _ask_teacher(run, tokenizer, teacher, stage, pending, len(requests), report)
        finally:
            rejected = rejected + report.rejected + report.filtered
            write_rejected(run.folder.rejected, rejected)
        if report.deaths:
            say(f"{stage}: engines were restarted {report.restarts} times; the last one: {report.deaths[-1]}")
    write_index(run.folder.cache, [Capture(one.spec, one.name) for one in teachers.values()])
    if others := len(done.difference(request.key for request in corpus.requests)):
        say(f"generate: {others} records of the cache answer no prompt of this configuration; they are trained on, too")
    for change, count in corpus.changes.most_common():
        say(f"generate: {count} rows: {change}")
    if rejected:
        counts = counts_by_kind(row.reason for row in rejected)
        say(f"generate: {len(rejected)} rows were not used ({counts}), see {run.folder.rejected}")


def _ask_teacher(
    run: Run,
    tokenizer: Any,
    asked: AskedTeacher,
    stage: str,
    pending: Sequence[Request],
    total: int,
    report: FleetReport,
) -> None:
    from llmdistill.teacher.engines import make_engine
    from llmdistill.teacher.filters import ResponseFilter
    from llmdistill.teacher.fleet import run_fleet
    from llmdistill.teacher.metrics import MetricsLines

    teacher, capture, folder = asked.config, run.config.capture, asked.folder
    factory = functools.partial(make_engine, folder, teacher, capture, len(tokenizer), tokenizer.eos_token_id)
    chosen = teacher.filters != type(teacher.filters)()
    make_filter = functools.partial(ResponseFilter, teacher.filters, folder) if chosen else None
    need = {"CPU": 1.0} if teacher.server else {"GPU": float(teacher.tensor_parallel)}
    count = (1 if teacher.replicas == "auto" else teacher.replicas) * teacher.pipeline_parallel
    needs: list[dict[str, float]] = [{**need, CAPTURE: SHARE}] * count
    already, lines = total - len(pending), MetricsLines(run.folder.metrics, asked.name)
    with Progress(stage, total, "records", already) as progress, ray_cluster(run.config.cluster, needs):

        def show(report: FleetReport) -> None:
            progress.update(already + report.records, report.note())
            lines.write(report)

        cache, compression = run.folder.cache, capture.compression
        try:
            run_fleet(
                pending, factory, teacher, cache, asked.spec, show, compression, total, report, make_filter, asked.name
            )
        finally:
            lines.write(report, last=True)


def train(run: Run) -> None:
    """Train the student, and the baseline where one is asked for."""
    from llmdistill.cli.student import make_student_cache, make_untrained
    from llmdistill.trainer import torchrun

    if run.config.train.wait_for_cache:
        from llmdistill.cache.growing import GrowingCache

        GrowingCache(run.folder.cache).take(timeout_seconds=run.config.train.cache_timeout_s)
    if torchrun.is_worker():
        if run.config.rounds is not None:
            raise ConfigError(
                "rounds need the fleets of a Ray cluster",
                where="rounds",
                fix="run `llmdistill train` without torchrun, or leave the rounds out",
            )
        _train_as_worker(run)
        return
    if run.config.rounds is not None:
        from llmdistill.cli.rounds import train_in_rounds

        train_in_rounds(run, run.config.rounds)
        return
    make_untrained(run)
    make_student_cache(run)
    with ray_cluster(run.config.cluster, [{"GPU": 1, TRAIN: SHARE}] * run.config.train.workers):
        for job in training_jobs(run):
            train_on_cluster(run, job)


def train_on_cluster(run: Run, job: TrainJob, cpus_in_use: Mapping[str, int] | None = None) -> None:
    """Train one model on the connected cluster; `cpus_in_use` as of `launch`."""
    from llmdistill.trainer.launcher import launch

    with _training_progress(job) as show:
        launch(job, run.folder.scratch, show, lambda message: say(f"train: {message}"), cpus_in_use)


def _train_as_worker(run: Run) -> None:
    import torch

    from llmdistill.cli.student import make_student_cache, make_untrained
    from llmdistill.trainer import torchrun
    from llmdistill.trainer.loop import run_training
    from llmdistill.trainer.metrics import watched

    with torchrun.process_group(run.config.train) as rank:
        if rank == 0:
            make_untrained(run)
            make_student_cache(run)
        torch.distributed.barrier()
        for job in training_jobs(run):
            if rank == 0:
                with _training_progress(job) as show, watched(job.metrics, job.name, show):
                    run_training(job)
            else:
                run_training(job)


def training_jobs(run: Run) -> list[TrainJob]:
    """The student's training, then that of the baseline where one is asked for."""
    from llmdistill.trainer.job import TrainJob

    def job(name: str, objectives: tuple[AnyObjective, ...], checkpoints: Path, settings: TrainConfig) -> TrainJob:
        live = settings.soft_labels == "live" or needs_teacher(objectives)
        return TrainJob(
            name=name,
            cache=run.training_cache,
            held_out=run.config.prompts.held_out,
            init=run.folder.untrained,
            checkpoints=checkpoints,
            metrics=run.folder.metrics,
            objectives=objectives,
            train=settings,
            teacher=run.teacher_folder if live else None,
            lora=run.config.student.lora,
        )

    jobs = [job("student", run.config.objectives, run.folder.checkpoints, run.config.train)]
    if run.config.evaluate.baseline:
        # The baseline has nothing to ask a teacher.
        settings = run.config.train.model_copy(update={"soft_labels": "cache", "metric_for_best_model": "eval_loss"})
        checkpoints = run.folder.baseline(BASELINE) / "checkpoints"
        jobs.append(job(BASELINE, (SequenceCEConfig(type="sequence_ce"),), checkpoints, settings))
    return jobs


@contextlib.contextmanager
def _training_progress(job: TrainJob) -> Iterator[Callable[[dict[str, Any]], None]]:
    from llmdistill.trainer.loop import first_and_total_steps
    from llmdistill.trainer.selection import choose

    first, total = first_and_total_steps(job)
    if job.train.select is not None:
        reader = CacheReader(job.cache)
        selection = choose(reader, reader.split(job.held_out)[0], job.train.select)
        say(f"train: {job.name}: {selection.words(job.train.select)}")
    with Progress(f"train {job.name}", total, "steps", first) as progress:

        def show(line: dict[str, Any]) -> None:
            names = (*(objective.name for objective in job.objectives), "grad_norm")
            values = {name: line[name] for name in names if name in line}  # those of a skipped step are not finite
            skipped = f", {line['skipped_steps']} skipped" if line.get("skipped_steps") else ""
            progress.update(line["step"], f"{line['tokens_per_second']:.0f} tokens/s{skipped}", values)

        yield show


def export(run: Run) -> None:
    """Write the student (and the baseline) as Hugging Face folders that load strictly, and let the student speak."""
    from llmdistill.export.huggingface import export_student, write_sentence
    from llmdistill.export.model_card import model_card
    from llmdistill.trainer.checkpoint import checkpoint_to_export

    models = {"student": (run.folder.checkpoints, run.folder.student)}
    if run.config.evaluate.baseline:
        models[BASELINE] = (run.folder.baseline(BASELINE) / "checkpoints", run.folder.baseline(BASELINE) / "model")
    index = json.loads((run.folder.cache / "index.json").read_text())
    for name, (checkpoints, folder) in models.items():
        checkpoint = checkpoint_to_export(checkpoints, run.config.train.load_best_model_at_end)
        if checkpoint is None:
            raise DataError("there is no checkpoint", where=str(checkpoints), fix="run `llmdistill train` first")
        card = model_card(name, run.config, index)
        options = run.config.export if name == "student" else ExportConfig()
        # Where the student has its own tokenizer, its files lie with its first weights.
        tokenizer_folder = run.folder.untrained if run.own_tokenizer else run.tokenizer_folder
        export_student(checkpoint, run.folder.untrained, folder, tokenizer_folder, card, options)
    student = run.folder.student
    say(f"export: {student} answers “What is the capital of France?” with “{write_sentence(student)}”")
    if run.config.export.verify_vllm:
        from llmdistill.config.teacher import SamplingConfig, TeacherConfig
        from llmdistill.teacher.respond import respond

        greedy = SamplingConfig(temperature=0.0, max_new_tokens=16)
        tokens = respond(student, TeacherConfig(model=str(student), max_model_len=64), [((1, 2, 3), greedy, 0)])[0]
        say(f"export: vLLM loads it and writes {len(tokens)} tokens")
    if run.config.export.push_to_hub:
        from llmdistill.export.hub import push

        say(f"export: uploaded to {push(student, run.config.export.push_to_hub)}")


def evaluate(run: Run) -> None:
    """Measure all models and write evaluation.json."""
    from llmdistill.cli.evaluation import evaluate_run

    models = {"untrained": run.folder.untrained}
    if run.config.evaluate.baseline:
        models[BASELINE] = run.folder.baseline(BASELINE) / "model"
    models["student"] = run.folder.student
    tokenizer_folder = run.tokenizer_folder if run.own_tokenizer else None
    evaluate_run(run.config, run.folder, models, lambda: run.teacher_folder, say, tokenizer_folder)


def report(run: Run) -> None:
    """Write report.html."""
    from llmdistill.observe.report.page import write_report

    say(f"report: {write_report(run.folder)}")


def say(text: str) -> None:
    """A line for the person at the terminal."""
    import click

    click.echo(text, err=True)
