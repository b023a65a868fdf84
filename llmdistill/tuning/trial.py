"""One trial: a training that stops now and then to be measured."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmdistill.config.tune import TuneConfig
from llmdistill.errors import TrainingError, WorkerDiedError
from llmdistill.trainer.job import TrainJob
from llmdistill.tuning.outcome import Measured, Outcome, read_outcome, write_outcome


@dataclass(frozen=True)
class Trial:
    """Plain data, so that it travels."""

    number: int
    folder: Path
    job: TrainJob
    """Its training, as long as the budget."""
    points: tuple[tuple[float, int], ...]
    """Where it is measured: share of the budget and optimizer step; the last are 1 and all of them."""
    metric: str


def points_of(tune: TuneConfig, steps: int) -> tuple[tuple[float, int], ...]:
    """Where a trial of so many steps is measured: at `grace`, at each multiple of it, and at the end."""
    points: dict[int, float] = {}
    share = tune.grace
    while share < 1.0:
        points[math.ceil(share * steps)] = share
        share *= tune.reduction_factor
    points.pop(steps, None)
    return (*((share, step) for step, share in points.items()), (1.0, steps))


def run_trial(
    trial: Trial,
    train: Callable[[TrainJob], None],
    measure: Callable[[TrainJob, str], float],
    report: Callable[[float, float], None],
) -> None:
    """Train and measure in turn, from where an earlier call was.

    A training that cannot go on with these settings is an outcome; every other error is raised.

    Args:
        trial: what to do.
        train: trains to the job's `pause`.
        measure: the metric of the job's newest checkpoint.
        report: called with share and value of each point, those of earlier calls included. It does not return where the
            trial is stopped.

    """
    outcome = read_outcome(trial.folder)
    for point in outcome.measured:
        report(point.share, point.value)
    if outcome.end:
        return
    for share, step in trial.points[len(outcome.measured) :]:
        started = time.monotonic()
        try:
            train(dataclasses.replace(trial.job, pause=step))
            value = measure(trial.job, trial.metric)
            if not math.isfinite(value):
                raise TrainingError(f"the held-out {trial.metric} is not finite after step {step}")
        except WorkerDiedError:
            raise
        except TrainingError as error:
            write_outcome(trial.folder, dataclasses.replace(outcome, end="failed", reason=error.what))
            return
        point = Measured(share, step, value, round(time.monotonic() - started, 3))
        outcome = Outcome((*outcome.measured, point), "whole" if share == 1.0 else "")
        write_outcome(trial.folder, outcome)
        report(share, value)


def measure_checkpoint(job: TrainJob, metric: str) -> float:
    """Mean of a metric over the held-out rows for the newest checkpoint of a training, as the evaluation has it.

    Args:
        job: the training.
        metric: `kl` or `cross_entropy`.

    """
    import torch

    from llmdistill.cache.reader import CacheReader
    from llmdistill.evaluation.heldout import measure_model
    from llmdistill.export.huggingface import trained_model
    from llmdistill.trainer.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(job.checkpoints)
    assert checkpoint is not None, "the training ends with one"
    model = trained_model(checkpoint, job.init).float().eval()
    reader = CacheReader(job.cache)
    found = measure_model(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),
        reader,
        reader.split(job.held_out)[1],
    )
    return float(found.values[metric].mean())
