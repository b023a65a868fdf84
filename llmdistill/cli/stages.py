"""The stages of a run, each from its inputs on disk to its outputs on disk.

The order is generate → train → export → evaluate → report.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdistill.cache.index import committed_keys, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.storage import commit_bytes
from llmdistill.cluster import CAPTURE, SHARE, TRAIN, ray_cluster
from llmdistill.config.objectives import AnyObjective, SequenceCEConfig
from llmdistill.config.run import RunConfig
from llmdistill.errors import DataError
from llmdistill.observe.progress import Progress
from llmdistill.observe.run_folder import RunFolder


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


BASELINE = "sft"
"""The baseline: the same student and steps, cross-entropy on the same responses only."""


def generate(run: Run) -> None:
    """Fill the cache: one record for every prompt (and sample) of the corpus."""
    from llmdistill.prompts.corpus import read_prompts, write_rejected
    from llmdistill.prompts.render import load_tokenizer, make_requests
    from llmdistill.teacher.engines import make_engine
    from llmdistill.teacher.fleet import FleetReport, run_fleet

    config = run.config
    tokenizer = load_tokenizer(run.teacher_folder)
    spec = capture_spec(run, tokenizer)
    paths = [source.path for source in config.prompts.sources]
    requests, rejected = make_requests(read_prompts(paths), tokenizer, config.prompts, config.teacher, spec)
    write_rejected(run.folder.rejected, rejected)
    done = committed_keys(run.folder.cache, spec)
    pending = [request for request in requests if request.key not in done]
    already = len(requests) - len(pending)
    if pending:
        factory = functools.partial(
            make_engine, run.teacher_folder, config.teacher, config.capture, len(tokenizer), tokenizer.eos_token_id
        )
        replicas = 1 if config.teacher.replicas == "auto" else config.teacher.replicas
        needs: list[dict[str, float]] = [{"GPU": config.teacher.tensor_parallel, CAPTURE: SHARE}] * replicas
        with Progress("generate", len(requests), "records", already) as progress, ray_cluster(config.cluster, needs):

            def show(report: FleetReport) -> None:
                note = "loading the teacher"
                if report.seconds:
                    note = f"{report.rows} rows  {report.rows / report.seconds:.0f} rows/s"
                if report.restarts:
                    note += f"  {report.restarts} restarts"
                progress.update(already + report.records, note)

            report = run_fleet(
                pending, factory, config.teacher, run.folder.cache, spec, show, config.capture.compression
            )
        rejected = rejected + report.rejected
        write_rejected(run.folder.rejected, rejected)
    write_index(run.folder.cache)
    if rejected:
        say(f"generate: {len(rejected)} rows were not used, see {run.folder.rejected}")


def capture_spec(run: Run, tokenizer: Any) -> Any:
    """The capture spec of a run's cache."""
    from llmdistill.prompts.keys import model_fingerprint, tokenizer_fingerprint
    from llmdistill.types import CaptureSpec

    config = run.config
    sampling = config.teacher.sampling.model_dump(exclude={"samples", "seed"})
    return CaptureSpec(
        mode=config.prompts.mode,
        kind=config.capture.kind,
        top_k=config.capture.top_k,
        vocabulary_size=len(tokenizer),
        teacher=model_fingerprint(run.teacher_folder),
        tokenizer=tokenizer_fingerprint(tokenizer),
        engine=config.teacher.engine,
        dtype=config.teacher.dtype,
        sampling=sampling if config.prompts.mode == "generate" else {},
        logprobs=config.capture.logprobs,
    )


def train(run: Run) -> None:
    """Train the student, and the baseline where one is asked for."""
    objectives = run.config.objectives
    make_untrained(run)
    trainings = [("student", objectives, run.folder.checkpoints)]
    if run.config.evaluate.baseline:
        trainings.append(
            (BASELINE, (SequenceCEConfig(type="sequence_ce"),), run.folder.baseline(BASELINE) / "checkpoints")
        )
    with ray_cluster(run.config.cluster, [{"GPU": 1, TRAIN: SHARE}] * run.config.train.workers):
        for name, chosen, checkpoints in trainings:
            _train_one(run, name, chosen, checkpoints)


def make_untrained(run: Run) -> None:
    """Write the student before training, once."""
    from llmdistill.student.creation import create_from_teacher

    student = run.config.student
    if run.folder.untrained.is_dir():
        return
    temporary = run.folder.path / ".untrained.tmp"
    if student.from_teacher is not None:
        kept = create_from_teacher(run.teacher_folder, student.from_teacher.layers, temporary)
        say(f"train: the student keeps layers {', '.join(map(str, kept))} of the teacher")
    else:
        from llmdistill.student.creation import create_from_model

        assert student.model is not None
        create_from_model(student.model, run.teacher_folder, temporary)
    temporary.rename(run.folder.untrained)


def _train_one(run: Run, name: str, objectives: tuple[AnyObjective, ...], checkpoints: Path) -> None:
    from llmdistill.trainer.job import TrainJob
    from llmdistill.trainer.launcher import launch

    job = TrainJob(
        name=name,
        cache=run.folder.cache,
        held_out=run.config.prompts.held_out,
        init=run.folder.untrained,
        checkpoints=checkpoints,
        metrics=run.folder.metrics,
        objectives=objectives,
        train=run.config.train,
    )
    from llmdistill.trainer.loop import first_and_total_steps

    first, total = first_and_total_steps(job)
    with Progress(f"train {name}", total, "steps", first) as progress:

        def show(line: dict[str, Any]) -> None:
            values = "  ".join(f"{objective.type} {line[objective.type]:.3f}" for objective in objectives)
            progress.update(line["step"], f"{values}  {line['tokens_per_second']:.0f} tokens/s")

        launch(job, run.folder.scratch, show)


def export(run: Run) -> None:
    """Write the student (and the baseline) as Hugging Face folders that load strictly, and let the student speak."""
    from llmdistill.export.huggingface import export_student, write_sentence
    from llmdistill.export.model_card import model_card
    from llmdistill.trainer.checkpoint import latest_checkpoint

    models = {"student": (run.folder.checkpoints, run.folder.student)}
    if run.config.evaluate.baseline:
        models[BASELINE] = (run.folder.baseline(BASELINE) / "checkpoints", run.folder.baseline(BASELINE) / "model")
    index = json.loads((run.folder.cache / "index.json").read_text())
    for name, (checkpoints, folder) in models.items():
        checkpoint = latest_checkpoint(checkpoints)
        if checkpoint is None:
            raise DataError("there is no checkpoint", where=str(checkpoints), fix="run `llmdistill train` first")
        card = model_card(name, run.config, index)
        export_student(checkpoint, run.folder.untrained, folder, run.teacher_folder, card)
    sentence = write_sentence(run.folder.student)
    say(f"export: {run.folder.student} answers “What is the capital of France?” with “{sentence}”")


def evaluate(run: Run) -> None:
    """Measure all models on the held-out records and write evaluation.json."""
    from llmdistill.evaluation.heldout import evaluate_model

    reader = CacheReader(run.folder.cache)
    _, records = reader.split(run.config.prompts.held_out)
    rows = int(reader.row_counts[records].sum())
    if not rows:
        raise DataError(
            f"no held-out record with supervised tokens among {len(reader)}",
            where=str(run.folder.cache),
            fix="raise prompts.held_out or add prompts",
        )
    models = {"untrained": run.folder.untrained}
    if run.config.evaluate.baseline:
        models[BASELINE] = run.folder.baseline(BASELINE) / "model"
    models["student"] = run.folder.student
    results = {}
    with Progress("evaluate", len(models) * len(records), "records") as progress:
        for number, (name, folder) in enumerate(models.items()):
            base = number * len(records)
            show = functools.partial(_show_records, progress, base, name)
            results[name] = asdict(evaluate_model(folder, reader, records, show))
    document = {"held_out_records": len(records), "held_out_rows": rows, "models": results}
    assert all(math.isfinite(value) for result in results.values() for value in result.values())
    commit_bytes(run.folder.evaluation, (json.dumps(document, indent=1) + "\n").encode())
    for name, result in results.items():
        say(
            f"evaluate: {name:<10} KL {result['kl']:.4f}  top-1 agreement {result['top1_agreement']:.3f}"
            f"  perplexity {result['perplexity']:.3f}"
        )


def _show_records(progress: Progress, before: int, name: str, done: int) -> None:
    progress.update(before + done, name)


def report(run: Run) -> None:
    """Write report.html."""
    from llmdistill.observe.report import write_report

    say(f"report: {write_report(run.folder)}")


def say(text: str) -> None:
    """A line for the person at the terminal."""
    import click

    click.echo(text, err=True)
