"""The trials on a Ray cluster, with Ray Tune: as many at once as it holds, the worse ones stopped early.

A trial of one worker trains in its own Ray actor, which the next trial takes over with all that it has imported. A
trial of several workers starts a Ray Train of its own for each stretch between two points.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill import errors
from llmdistill.cache.storage import commit_bytes
from llmdistill.cluster import SHARE, TRAIN, require_resources
from llmdistill.config.tune import TuneConfig
from llmdistill.errors import LLMDistillError, WorkerDiedError
from llmdistill.trainer.job import TrainJob
from llmdistill.tuning.outcome import read_outcome, write_outcome
from llmdistill.tuning.trial import Trial, measure_checkpoint, run_trial

_NUMBER, _SHARE, _VALUE = "number", "share", "value"
_ERROR = "error"
_OPTIONS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials have metrics of their own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # one that fails reports none
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer screens ignore `verbose=0`, and would stand between our lines
}


@dataclass(frozen=True)
class Places:
    """What the connected cluster gives to trials."""

    at_once: int
    use_gpu: bool
    threads: int | None
    """Of torch, in trials of one worker; None: its own choice."""
    resources: dict[str, float]
    """That one trial holds itself."""


def search(
    trials: Sequence[Trial], tune: TuneConfig, restarts: int, scratch: Path, on_end: Callable[[Trial], None]
) -> None:
    """Run all trials on the connected cluster; those that are finished are not repeated.

    Args:
        trials: the first of them is never stopped.
        tune: the settings.
        restarts: how often a trial whose processes died is started again.
        scratch: folder for Ray Tune's own files, emptied.
        on_end: called with each trial that has ended.

    Raises:
        ClusterError: the cluster is too small for one trial.
        LLMDistillError: what a trial raised.

    """
    from ray import tune as ray_tune

    os.environ.update(_OPTIONS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    shutil.rmtree(scratch, ignore_errors=True)
    workers = trials[0].job.train.workers
    places = _places(workers, len(trials))
    by_number = {trial.number: trial for trial in trials}
    # Those that have ended come first: what they measured is there when the others are judged.
    order = sorted(by_number, key=lambda number: (not read_outcome(by_number[number].folder).end, number))
    for trial in trials:
        (trial.folder / _ERROR).unlink(missing_ok=True)
    work = ray_tune.with_parameters(_run_one, trials=by_number, places=places)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(work, places.resources),
        param_space={_NUMBER: ray_tune.grid_search(order)},
        tune_config=ray_tune.TuneConfig(
            metric=_VALUE,
            mode="min",
            scheduler=_scheduler(tune, trials[0].number),
            max_concurrent_trials=places.at_once,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="search",
            storage_path=str(scratch),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=restarts),
            callbacks=[_callback(by_number, on_end)],
        ),
    )
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the table
        results = tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    for trial in trials:
        _raise_what_it_raised(trial.folder)
    if results.errors:
        reason = str(results.errors[0]).strip().splitlines()[-1]
        raise WorkerDiedError(f"the processes of a trial died: {reason}", fix="the same command continues")


def _places(workers: int, trials: int) -> Places:
    import ray

    from llmdistill.trainer.launcher import cores_per_worker

    held = ray.cluster_resources()
    use_gpu, reserved = bool(held.get("GPU", 0)), TRAIN in held
    nodes = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and (not reserved or TRAIN in node["Resources"])
    ]
    device = "GPU" if use_gpu else "CPU"
    require_resources(
        f"a trial of {workers} workers", {device: workers}, fix="lower tune.workers or use a larger cluster"
    )
    at_once = max(min(int(sum(node.get(device, 0) for node in nodes)) // workers, trials), 1)
    if workers > 1:
        # Without GPUs each Ray Train takes all cores of the cluster. The trial itself only waits for it, on the head.
        return Places(at_once if use_gpu else 1, use_gpu, None, {"node:__internal_head__": SHARE})
    cores = 1 if use_gpu else cores_per_worker([int(node.get("CPU", 0)) for node in nodes], at_once)
    resources = {
        "CPU": float(cores),
        **({"GPU": 1.0} if use_gpu else {}),
        **({TRAIN: SHARE} if reserved else {}),
    }
    return Places(at_once, use_gpu, None if use_gpu else cores, resources)


def _scheduler(tune: TuneConfig, spared: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class Halving(ASHAScheduler):
        """ASHA that lets the trial to compare with go on to the end."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            action: str = super().on_trial_result(tune_controller, trial, result)
            return TrialScheduler.CONTINUE if trial.config[_NUMBER] == spared else action

    # Shares of the budget are its time: trials of other batch sizes have other numbers of steps.
    return Halving(
        time_attr=_SHARE,
        max_t=1.0,  # type: ignore[arg-type]
        grace_period=tune.grace,  # type: ignore[arg-type]
        reduction_factor=tune.reduction_factor,
    )


def _callback(by_number: dict[int, Trial], on_end: Callable[[Trial], None]) -> Any:
    from ray.tune import Callback

    class Ended(Callback):
        """Writes down at once which trials were stopped."""

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ended = by_number[trial.config[_NUMBER]]
            if not (ended.folder / _ERROR).exists():
                _settle(ended)
                on_end(ended)

    return Ended()


def _settle(trial: Trial) -> None:
    outcome = read_outcome(trial.folder)
    if not outcome.end:
        write_outcome(trial.folder, dataclasses.replace(outcome, end="early"))
    shutil.rmtree(trial.job.checkpoints, ignore_errors=True)


def _run_one(config: dict[str, Any], trials: dict[int, Trial], places: Places) -> None:
    """What Ray Tune runs in an actor."""
    from ray.tune import report

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    trial = trials[config[_NUMBER]]
    workers = trial.job.train.workers

    def train(job: TrainJob) -> None:
        if workers == 1:
            from llmdistill.trainer.alone import train_alone

            train_alone(job, places.threads)
        else:
            from llmdistill.trainer.launcher import launch

            launch(job, trial.folder / ".ray", lambda line: None)

    def measure(job: TrainJob, metric: str) -> float:
        return measure_checkpoint(job, metric) if workers == 1 else _measure_elsewhere(job, metric, places)

    try:
        run_trial(trial, train, measure, lambda share, value: report({_SHARE: share, _VALUE: value}))
    except WorkerDiedError:
        raise  # worth another try
    except LLMDistillError as error:
        _keep_error(trial.folder, error)


def _keep_error(folder: Path, error: LLMDistillError) -> None:
    words = [type(error).__name__, error.what, error.where, error.fix]
    commit_bytes(folder / _ERROR, json.dumps(words).encode())


def _raise_what_it_raised(folder: Path) -> None:
    if (folder / _ERROR).exists():
        name, *words = json.loads((folder / _ERROR).read_text())
        raise getattr(errors, name)(*words)


def _measure_elsewhere(job: TrainJob, metric: str, places: Places) -> float:
    """With a device of those that the training of this trial has just left."""
    import ray

    work: Any = ray.remote(measure_checkpoint).options(num_cpus=1, num_gpus=1 if places.use_gpu else 0)
    value: float = ray.get(work.remote(job, metric))
    return value
