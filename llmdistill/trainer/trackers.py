"""Where the lines of metrics.jsonl go besides: TensorBoard always, Weights & Biases and MLflow where configured.

metrics.jsonl is what counts. TensorBoard's file is written anew from it when a training starts, so it never holds a
step twice; services that cannot take a step back get only steps that they have not seen.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmdistill.cache.storage import commit_bytes
from llmdistill.config.train import TrainConfig
from llmdistill.errors import ConfigError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import MetricsFile

_FLUSH_SECONDS = 10
_PLACE = frozenset({"step", "time"})
"""What says where on a curve a line stands."""


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, numbers: dict[str, float], seconds: float) -> None:
        """Log a step (the first is 1) that ended at a time in seconds since 1970."""

    def close(self) -> None:
        """Write what is left."""


class TrainingLog:
    """The lines of a training: in metrics.jsonl first, then everywhere else. On rank 0.

    Args:
        job: the training.
        first_step: steps from here on are still to come.

    Raises:
        ConfigError: a package of `train.report_to` is not installed.

    """

    def __init__(self, job: TrainJob, first_step: int) -> None:
        self._file = MetricsFile(job.metrics, job.name, first_step)
        self._trackers = make_trackers(job, self._file.kept, self._file.seen)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log a finished step (the first is 1)."""
        line = self._file.write(step, values)
        for tracker in self._trackers:
            tracker.log(step, numbers_of(line), line["time"])

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._trackers:
            tracker.close()


def make_trackers(job: TrainJob, kept: Sequence[dict[str, Any]], seen: int) -> list[Tracker]:
    """The trackers of a training, on rank 0.

    Args:
        job: the training.
        kept: its lines of metrics.jsonl before the first step that is still to come.
        seen: the last step that was ever logged, also by a call before that went further than its checkpoint.

    Raises:
        ConfigError: a package of `train.report_to` is not installed.

    """
    services: dict[str, Callable[..., Tracker]] = {"wandb": WandbTracker, "mlflow": MLflowTracker}
    modules = require_services(job.train)
    ids = _Ids(job.metrics.parent / "trackers.json", job.name)
    trackers: list[Tracker] = [TensorBoardTracker(job.tensorboard, kept)]
    return trackers + [services[name](module, job, ids, seen) for name, module in modules.items()]


def numbers_of(values: dict[str, Any]) -> dict[str, float]:
    """What of a line can be drawn as a curve."""
    return {name: value for name, value in values.items() if name not in _PLACE and isinstance(value, (int, float))}


def require_services(train: TrainConfig) -> dict[str, Any]:
    """The packages of `train.report_to`, by name.

    Raises:
        ConfigError: one cannot be imported.

    """
    found: dict[str, Any] = {}
    for name in train.report_to:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"the package {name} cannot be imported ({error})",
                where="train.report_to",
                fix=f"pip install {name} in the environment of the trainers, or leave it out",
            ) from None
    return found


class _Ids:
    """Ids that services gave to a training, so that a later call goes on with the same one."""

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self._all: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, service: str) -> str | None:
        return self._all.get(self._model, {}).get(service)

    def put(self, service: str, identity: str) -> None:
        self._all.setdefault(self._model, {})[service] = identity
        commit_bytes(self._path, (json.dumps(self._all, indent=1) + "\n").encode())


class TensorBoardTracker:
    """One event file, made anew at each start."""

    def __init__(self, folder: Path, kept: Sequence[dict[str, Any]]) -> None:
        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        # A TensorBoard that is open on the folder drops what it has of the old file when it reads this purge step.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=_FLUSH_SECONDS)
        for line in kept:
            self.log(line["step"], numbers_of(line), line.get("time"))

    def log(self, step: int, numbers: dict[str, float], seconds: float | None) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WandbTracker:
    """Project, server and key come from WANDB_PROJECT, WANDB_BASE_URL, WANDB_API_KEY, WANDB_MODE."""

    def __init__(self, module: Any, job: TrainJob, ids: _Ids, seen: int) -> None:
        found = ids.get("wandb")
        self._seen = seen if found else 0
        folder = job.metrics.parent
        name = f"{folder.name}/{job.name}"
        self._run = module.init(
            id=found, resume="allow", name=name, dir=str(folder), config=job.train.model_dump(mode="json")
        )
        ids.put("wandb", self._run.id)

    def log(self, step: int, numbers: dict[str, float], seconds: float) -> None:
        """See `Tracker`."""
        if step > self._seen:
            self._run.log(numbers, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflowTracker:
    """Server and experiment come from MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, module: Any, job: TrainJob, ids: _Ids, seen: int) -> None:
        found = ids.get("mlflow")
        self._module, self._seen = module, seen if found else 0
        name = f"{job.metrics.parent.name}/{job.name}"
        self._id = module.start_run(run_id=found, run_name=None if found else name).info.run_id
        if found is None:
            module.log_params(job.train.model_dump(mode="json"))
        ids.put("mlflow", self._id)

    def log(self, step: int, numbers: dict[str, float], seconds: float) -> None:
        """See `Tracker`."""
        if step > self._seen:
            self._module.log_metrics(numbers, step=step, run_id=self._id)

    def close(self) -> None:
        """See `Tracker`."""
        self._module.end_run()
