"""Runs a training on a Ray cluster, with Ray Train."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.cluster import SHARE, TRAIN, require_resources
from llmdistill.errors import LLMDistillError, WorkerDiedError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import watched
from llmdistill.trainer.signs import stall_message

_START_ATTEMPTS = 10
"""How often Ray Train waits a minute for its workers before the training is given up; where fewer workers would do, it
waits once, and then the cluster is looked at anew."""


def launch(
    job: TrainJob,
    scratch: Path,
    on_progress: Callable[[dict[str, Any]], None],
    on_restart: Callable[[str], None] = lambda message: None,
    cpus_in_use: Mapping[str, int] | None = None,
) -> None:
    """Train on the connected cluster; a finished training returns at once.

    Workers that die are started again at the newest checkpoint, `train.max_restarts` times; an error of the training
    itself would come again and is not.

    Args:
        job: what to train.
        scratch: folder for Ray Train's own files.
        on_progress: called with each new line of the job's metrics.
        on_restart: called with what happened, before the workers are started again.
        cpus_in_use: node id → CPUs that others of this run keep meanwhile.

    Raises:
        ClusterError: the cluster is too small.
        TrainingError, DataError: the training failed.

    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch.mkdir(parents=True, exist_ok=True)
    with watched(job.metrics, job.name, on_progress):
        for attempt in range(job.train.max_restarts + 1):
            room = _room(job, cpus_in_use or {})
            sized = dataclasses.replace(job, train=job.train.model_copy(update={"workers": room.workers}))
            if room.workers < job.train.workers:
                on_restart(f"the cluster holds {room.workers} of {job.train.workers} workers; going on with them")
            try:
                _trainer(sized, scratch, room).fit()
                return
            except TrainingFailedError as error:
                cause = _cause(error)
                if isinstance(cause, WorkerDiedError) and (stalled := stall_message(job.signs)):
                    cause = WorkerDiedError(stalled)
                if not isinstance(cause, WorkerDiedError) or attempt == job.train.max_restarts:
                    raise cause from error
                _release()
                on_restart(f"{cause}; restart {attempt + 1} of {job.train.max_restarts}, from the newest checkpoint")


@dataclass(frozen=True)
class _Room:
    """What the cluster holds of a training, now."""

    workers: int
    cores: int
    """Of each worker."""
    use_gpu: bool
    reserved: bool
    """Some nodes are for training only."""


def _room(job: TrainJob, cpus_in_use: Mapping[str, int]) -> _Room:
    """As many workers as asked for, or as `train.min_workers` allows, where nodes were lost.

    Raises:
        ClusterError: the cluster holds fewer.

    """
    import ray

    resources = ray.cluster_resources()
    use_gpu, reserved = bool(resources.get("GPU", 0)), TRAIN in resources
    what = "GPU" if use_gpu else "CPU"
    nodes = [(node["Resources"], cpus_in_use.get(node["NodeID"], 0)) for node in ray.nodes() if node["Alive"]]
    fitting = [count for count in job.train.worker_counts() if count <= resources.get(what, 0)]
    if not fitting:
        fewest = job.train.worker_counts()[-1]
        require_resources(
            f"the trainer (train.workers {job.train.workers}{f', at least {fewest}' if job.train.min_workers else ''})",
            {what: fewest},
            fix="lower train.workers or use a larger cluster",
        )
    cpus = [int(node.get("CPU", 0)) - busy for node, busy in nodes if not reserved or TRAIN in node]
    return _Room(fitting[0], 1 if use_gpu else cores_per_worker(cpus, fitting[0]), use_gpu, reserved)


def cores_per_worker(node_cpus: Sequence[int], workers: int) -> int:
    """The most cores that each of so many workers can have: one worker lies on one node.

    Args:
        node_cpus: cores of each node.
        workers: number of workers.

    """
    fitting = [n for n in range(1, max(node_cpus) + 1) if sum(cpus // n for cpus in node_cpus) >= workers]
    return max(fitting, default=1)


def _release() -> None:
    """Remove what a failed start left reserved: the next start would wait for it for ever."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    # A placement group's id ends with that of the job that made it; those of other jobs are none of ours.
    mine = ray.get_runtime_context().get_job_id()
    for hexadecimal, group in placement_group_table().items():
        if hexadecimal.endswith(mine) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(hexadecimal))))


def _trainer(job: TrainJob, scratch: Path, room: _Room) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from llmdistill.trainer.ray_backend import ProcessGroupConfig

    attempts = 1 if job.train.min_workers else _START_ATTEMPTS
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": None if room.use_gpu else room.cores},
        scaling_config=ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=room.use_gpu,
            resources_per_worker={
                "CPU": room.cores,
                **({"GPU": 1} if room.use_gpu else {}),
                **({TRAIN: SHARE} if room.reserved else {}),
            },
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(scratch),
            # Ray Train hands out its second version's class, which mypy does not see.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=attempts),  # type: ignore[call-arg]
        ),
        torch_config=ProcessGroupConfig(backend="nccl" if room.use_gpu else "gloo"),
    )


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
        return WorkerDiedError(f"{type(failure).__name__}: {failure}".strip(), where=f"training worker {rank}")
    return WorkerDiedError(str(error).strip())
