"""`llmdistill tune`: short trainings with other settings, and the configuration of the best one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmdistill.cli.stages import Run
    from llmdistill.config.run import RunConfig
    from llmdistill.tuning.space import Drawn
    from llmdistill.tuning.trial import Trial


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--output", help="Folder of the run with the best settings [OUTPUT-tuned].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def tune(config: str, overrides: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Search settings of the training with short trainings, and write the configuration of the best one.

    The cache is filled first where it is not. Trials lie in RUN/tune; those that are finished are not repeated.
    """
    from llmdistill.config.load import load_config

    run_config = load_config(config, overrides)
    document = tune_run(run_config, output or f"{run_config.output.rstrip('/')}-tuned")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    from llmdistill.preflight.tables import console, table
    from llmdistill.tuning.table import table_rows

    columns, rows = table_rows(document)
    screen = console()
    screen.print(table(f"Held-out {document['metric']} of {len(rows)} trials", columns, rows))
    click.echo(f"\n{document['command']}")


def tune_run(config: RunConfig, output: str) -> dict[str, Any]:
    """Search, and write RUN/tune/table.json and RUN/tune/best.yaml.

    Args:
        config: the run that the trials are like.
        output: folder of the run with the best settings, in best.yaml.

    Returns:
        what table.json holds.

    Raises:
        ConfigError: the search space does not fit the configuration.
        DataError: no held-out record has supervised tokens, or the cache does not tell the metric.
        TrainingError: all trials failed.

    """
    import yaml

    from llmdistill.cache.storage import commit_bytes
    from llmdistill.cli.pipeline import generate_first
    from llmdistill.cli.stages import Run
    from llmdistill.config.tune import TuneConfig
    from llmdistill.errors import ConfigError, TrainingError
    from llmdistill.observe.run_folder import RunFolder
    from llmdistill.tuning.outcome import read_outcome
    from llmdistill.tuning.space import draw_trials, search_space
    from llmdistill.tuning.table import tune_document

    if config.rounds is not None:
        raise ConfigError("trials train on the cache alone", where="rounds", fix="leave the rounds out to tune")
    if config.student.tokenizer == "own":
        raise ConfigError(
            "trials are compared by the teacher's distributions, which are over other tokens",
            where="student.tokenizer",
            fix="tune with a student of the teacher's tokenizer",
        )
    drawn = draw_trials(config, search_space(config))
    generate_first(config)
    settings = config.tune or TuneConfig()
    run = Run(config, RunFolder(Path(config.output).resolve()))
    _require_metric(run, settings.metric)
    trials = [_trial(run, one, settings) for one in drawn]
    _search(run, trials, settings)
    outcomes = {trial.number: read_outcome(trial.folder) for trial in trials}
    document = tune_document(trials, {one.number: one.settings for one in drawn}, outcomes)
    if document["winner"] is None:
        raise TrainingError(f"all trials failed; the one as configured: {outcomes[0].reason}", str(run.folder.tune))
    best, table = run.folder.tune / "best.yaml", run.folder.tune / "table.json"
    winner = drawn[document["winner"]].config.model_copy(update={"output": output})
    values = winner.model_dump(mode="json", exclude_unset=True, exclude={"tune"})
    commit_bytes(best, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    _share_cache(run.folder.cache, RunFolder(Path(output).resolve()).cache)
    document |= {"best": str(best), "command": f"llmdistill run {os.path.relpath(best)}"}
    commit_bytes(table, (json.dumps(document, indent=1) + "\n").encode())
    return document


def _require_metric(run: Run, metric: str) -> None:
    import numpy as np

    from llmdistill.cache.reader import CacheReader
    from llmdistill.errors import DataError
    from llmdistill.evaluation.heldout import measure_teacher
    from llmdistill.evaluation.methods import methods
    from llmdistill.evaluation.teacher_side import on_policy

    reader = CacheReader(run.folder.cache)
    _, records = reader.split(run.config.prompts.held_out)
    if not reader.row_counts[records].sum():
        raise DataError(
            "there is no held-out record with supervised tokens",
            where=str(run.folder.cache),
            fix="raise prompts.held_out or add prompts",
        )
    known = not np.isnan(measure_teacher(reader, records).values["stored_entropy"]).any()
    _, undefined = methods(reader.spec, known, on_policy(reader.spec))
    if metric in undefined:
        raise DataError(undefined[metric], where=str(run.folder.cache), fix="use tune.metric: cross_entropy")


def _trial(run: Run, drawn: Drawn, tune: Any) -> Trial:
    """The trial of some settings; its student is written here where no other trial has the same."""
    import math

    from llmdistill.cache.reader import CacheReader
    from llmdistill.cli import stages
    from llmdistill.cli.student import make_student
    from llmdistill.trainer.course import identity_of_records, total_steps
    from llmdistill.tuning.trial import Trial, points_of

    changed = stages.Run(drawn.config, run.folder)
    job = stages.training_jobs(changed)[0]
    # What only says how a training runs, or would end it at another point than the budget.
    plain = {
        "workers": tune.workers or job.train.workers,
        "wait_for_cache": False,
        "eval_steps": None,
        "load_best_model_at_end": False,
        "early_stopping_patience": None,
        "report_to": (),
        "save_total_limit": 1,
        "max_restarts": 0,  # Ray Tune starts the whole trial again
    }
    job = dataclasses.replace(job, train=job.train.model_copy(update=plain))
    assert job.train.accumulation_steps  # raises where the workers do not divide the batch
    steps = math.ceil(total_steps(job) * tune.budget)
    job = dataclasses.replace(job, train=job.train.model_copy(update={"max_steps": steps}))
    records = identity_of_records(job, CacheReader(job.cache))
    points = points_of(tune, steps)
    student = _digest(drawn.config.student.model_dump(mode="json"), records)
    folder = run.folder.tune / "trials" / _digest(student, job.identity(records), points, tune.metric)
    init = run.folder.tune / "students" / student
    init.parent.mkdir(parents=True, exist_ok=True)
    make_student(changed, init, "tune")
    folder.mkdir(parents=True, exist_ok=True)
    job = dataclasses.replace(
        job, name="trial", init=init, checkpoints=folder / "checkpoints", metrics=folder / "metrics.jsonl"
    )
    return Trial(drawn.number, folder, job, points, tune.metric)


def _digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _search(run: Run, trials: Sequence[Trial], tune: Any) -> None:
    from llmdistill.cluster import SHARE, TRAIN, ray_cluster
    from llmdistill.observe.progress import Progress
    from llmdistill.tuning.outcome import read_outcome
    from llmdistill.tuning.search import search

    outcomes = {trial.number: read_outcome(trial.folder) for trial in trials}
    ended = {number for number, outcome in outcomes.items() if outcome.end}
    if len(ended) == len(trials):
        return
    needs = [{"GPU": 1.0, TRAIN: SHARE}] * trials[0].job.train.workers
    with Progress("tune", len(trials), "trials", len(ended)) as progress, ray_cluster(run.config.cluster, needs):

        def show(trial: Trial) -> None:
            ended.add(trial.number)
            outcomes[trial.number] = read_outcome(trial.folder)
            found = [points[-1].value for outcome in outcomes.values() if (points := outcome.measured)]
            progress.update(len(ended), values={f"best {tune.metric}": min(found)} if found else {})

        search(trials, tune, run.config.train.max_restarts, run.folder.tune / ".ray", show)


def _share_cache(source: Path, target: Path) -> None:
    """Give the run with the best settings the same records, so that no teacher is asked again. Shards never change."""
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link_or_copy)
    temporary.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copy2(source, target)
