"""Runs a training on a Ray cluster, with Ray Train."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmdistill.cluster import SHARE, TRAIN, require_resources
from llmdistill.errors import LLMDistillError, TrainingError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import read_metrics

_POLL_SECONDS = 1.0


def launch(job: TrainJob, scratch: Path, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Train on the connected cluster; a finished training returns at once.

    Args:
        job: what to train.
        scratch: folder for Ray Train's own files.
        on_progress: called with each new line of the job's metrics.

    Raises:
        ClusterError: the cluster is too small.
        TrainingError, DataError: the training failed.

    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = ray.cluster_resources()
    use_gpu = bool(resources.get("GPU", 0))
    require_resources(
        f"the trainer (train.workers {job.train.workers})",
        {"GPU" if use_gpu else "CPU": job.train.workers},
        fix="lower train.workers or use a larger cluster",
    )
    cores = 1 if use_gpu else int(resources["CPU"] // job.train.workers)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": None if use_gpu else cores},
        scaling_config=ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": cores,
                **({"GPU": 1} if use_gpu else {}),
                **({TRAIN: SHARE} if TRAIN in resources else {}),
            },
        ),
        run_config=RunConfig(name=job.name, storage_path=str(scratch), failure_config=FailureConfig(max_failures=0)),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
    )
    watcher = _MetricsWatcher(job, on_progress)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        watcher.stop()


def _worker(config: dict[str, Any]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    from llmdistill.trainer.loop import run_training

    run_training(config["job"])


def _cause(error: Exception) -> LLMDistillError:
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        for link in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(link, LLMDistillError):
                return link
        return TrainingError(f"{type(failure).__name__}: {failure}".strip(), where=f"training worker {rank}")
    return TrainingError(str(error).strip())


class _MetricsWatcher:
    """Follows metrics.jsonl while Ray Train blocks."""

    def __init__(self, job: TrainJob, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self._job = job
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._last: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._report()

    def _follow(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            self._report()

    def _report(self) -> None:
        lines = [line for line in read_metrics(self._job.metrics) if line.get("model") == self._job.name]
        if lines and lines[-1] != self._last:
            self._last = lines[-1]
            self._on_progress(lines[-1])
