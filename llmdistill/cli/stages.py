"""The stages of a run, each from its inputs on disk to its outputs on disk.

The order is generate → train → export → evaluate → report.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.cache.index import INDEX, committed_keys, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cluster import CAPTURE, SHARE, TRAIN, ray_cluster
from llmdistill.config.export import ExportConfig
from llmdistill.config.objectives import AnyObjective, SequenceCEConfig, needs_teacher
from llmdistill.config.run import RunConfig
from llmdistill.config.train import TrainConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.observe.progress import Progress
from llmdistill.observe.run_folder import RunFolder

if TYPE_CHECKING:
    from llmdistill.teacher.fleet_report import FleetReport
    from llmdistill.trainer.job import TrainJob
    from llmdistill.types import CaptureSpec, Request


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
        from llmdistill.teacher.source import locate_model

        if self.config.teacher.server is None:
            return self.teacher_folder
        return locate_model(self.config.teacher.model, "teacher.model")


BASELINE = "sft"
"""The baseline: the same student and steps, cross-entropy on the same responses only."""


def generate(run: Run) -> None:
    """Fill the cache: one record for every prompt (and sample) of the corpus."""
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.rejects import counts_by_kind, write_rejected
    from llmdistill.prompts.render import load_tokenizer
    from llmdistill.prompts.requests import make_requests
    from llmdistill.teacher.fleet_report import FleetReport

    config = run.config
    tokenizer = load_tokenizer(run.tokenizer_folder)
    spec = capture_spec(run, tokenizer)
    corpus = make_requests(read_prompts(config.prompts), tokenizer, config.prompts, config.teacher, spec)
    requests, rejected = corpus.requests, corpus.rejected
    write_rejected(run.folder.rejected, rejected)
    done = committed_keys(run.folder.cache, spec)
    pending = [request for request in requests if request.key not in done]
    report = FleetReport()
    if pending:
        # Its presence says that no more shards will come, to a training that waits for them.
        (run.folder.cache / INDEX).unlink(missing_ok=True)
        try:
            _ask_teacher(run, tokenizer, spec, pending, len(requests), report)
        finally:
            rejected = rejected + report.rejected + report.filtered
            write_rejected(run.folder.rejected, rejected)
        if report.deaths:
            say(f"generate: engines were restarted {report.restarts} times; the last one: {report.deaths[-1]}")
    write_index(run.folder.cache)
    for change, count in corpus.changes.most_common():
        say(f"generate: {count} rows: {change}")
    if rejected:
        counts = counts_by_kind(row.reason for row in rejected)
        say(f"generate: {len(rejected)} rows were not used ({counts}), see {run.folder.rejected}")


def _ask_teacher(
    run: Run, tokenizer: Any, spec: CaptureSpec, pending: Sequence[Request], total: int, report: FleetReport
) -> None:
    from llmdistill.teacher.engines import make_engine
    from llmdistill.teacher.filters import ResponseFilter
    from llmdistill.teacher.fleet import run_fleet
    from llmdistill.teacher.metrics import MetricsLines

    teacher, capture, folder = run.config.teacher, run.config.capture, run.tokenizer_folder
    factory = functools.partial(make_engine, folder, teacher, capture, len(tokenizer), tokenizer.eos_token_id)
    chosen = teacher.filters != type(teacher.filters)()
    make_filter = functools.partial(ResponseFilter, teacher.filters, folder) if chosen else None
    need = {"CPU": 1.0} if teacher.server else {"GPU": float(teacher.tensor_parallel)}
    count = (1 if teacher.replicas == "auto" else teacher.replicas) * teacher.pipeline_parallel
    needs: list[dict[str, float]] = [{**need, CAPTURE: SHARE}] * count
    already, lines = total - len(pending), MetricsLines(run.folder.metrics)
    with Progress("generate", total, "records", already) as progress, ray_cluster(run.config.cluster, needs):

        def show(report: FleetReport) -> None:
            progress.update(already + report.records, report.note())
            lines.write(report)

        cache, compression = run.folder.cache, capture.compression
        try:
            run_fleet(pending, factory, teacher, cache, spec, show, compression, total, report, make_filter)
        finally:
            lines.write(report, last=True)


def capture_spec(run: Run, tokenizer: Any) -> Any:
    """The capture spec of a run's cache."""
    from llmdistill.prompts.keys import model_fingerprint, served_fingerprint, tokenizer_fingerprint
    from llmdistill.types import CaptureSpec

    config = run.config
    sampling = config.teacher.sampling.model_dump(exclude={"samples", "seed"})
    folder, served = run.tokenizer_folder, config.teacher.served_name
    return CaptureSpec(
        mode=config.prompts.mode,
        vocabulary_size=len(tokenizer),
        teacher=served_fingerprint(folder, served) if config.teacher.server else model_fingerprint(folder),
        tokenizer=tokenizer_fingerprint(tokenizer),
        engine=config.teacher.engine,
        dtype=config.teacher.dtype,
        sampling=sampling if config.prompts.mode == "generate" else {},
        **config.capture.spec_fields(),
    )


def train(run: Run) -> None:
    """Train the student, and the baseline where one is asked for."""
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

    from llmdistill.trainer import torchrun
    from llmdistill.trainer.loop import run_training
    from llmdistill.trainer.metrics import watched

    with torchrun.process_group(run.config.train) as rank:
        if rank == 0:
            make_untrained(run)
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
            cache=run.folder.cache,
            held_out=run.config.prompts.held_out,
            init=run.folder.untrained,
            checkpoints=checkpoints,
            metrics=run.folder.metrics,
            objectives=objectives,
            train=settings,
            teacher=run.teacher_folder if live else None,
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
    from llmdistill.cache.reader import CacheReader
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


def make_untrained(run: Run) -> None:
    """Write the student before training, once."""
    make_student(run, run.folder.untrained, "train")


def make_student(run: Run, folder: Path, stage: str) -> None:
    """Write the student of a configuration into a folder, once; `stage` says so."""
    from llmdistill.student.creation import create_student

    if folder.is_dir():
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for line in create_student(run.config.student, run.teacher_folder, temporary, _calibration(run)).splitlines():
        say(f"{stage}: {line}")
    temporary.rename(folder)


def _calibration(run: Run) -> Iterator[list[int]]:
    """Token ids of some training records; records lie in the order of hashes, so the first ones are a fair sample."""
    wanted = run.config.student.from_teacher
    assert wanted is not None
    reader = CacheReader(run.folder.cache)
    training, _ = reader.split(run.config.prompts.held_out)
    for number in training[: wanted.calibration.records].tolist():
        yield reader.read(number).token_ids_N[: wanted.calibration.tokens].tolist()


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
        export_student(checkpoint, run.folder.untrained, folder, run.tokenizer_folder, card, options)
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
    evaluate_run(run.config, run.folder, models, lambda: run.teacher_folder, say)


def report(run: Run) -> None:
    """Write report.html."""
    from llmdistill.observe.report.page import write_report

    say(f"report: {write_report(run.folder)}")


def say(text: str) -> None:
    """A line for the person at the terminal."""
    import click

    click.echo(text, err=True)
