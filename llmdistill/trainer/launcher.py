"""Runs a training on a Ray cluster, with Ray Train."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmdistill.cluster import SHARE, TRAIN, require_resources
from llmdistill.errors import LLMDistillError, WorkerDiedError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import watched
from llmdistill.trainer.signs import stall_message

_START_ATTEMPTS = 10
"""How often Ray Train waits a minute for its workers before the training is given up."""


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
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = ray.cluster_resources()
    use_gpu = bool(resources.get("GPU", 0))
    require_resources(
        f"the trainer (train.workers {job.train.workers})",
        {"GPU" if use_gpu else "CPU": job.train.workers},
        fix="lower train.workers or use a larger cluster",
    )
    reserved = TRAIN in resources
    used = cpus_in_use or {}
    nodes = [(node["Resources"], used.get(node["NodeID"], 0)) for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) - busy for node, busy in nodes if not reserved or TRAIN in node]
    cores = 1 if use_gpu else cores_per_worker(cpus, job.train.workers)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch.mkdir(parents=True, exist_ok=True)
    with watched(job.metrics, job.name, on_progress):
        for attempt in range(job.train.max_restarts + 1):
            try:
                _trainer(job, scratch, use_gpu, cores, reserved).fit()
                return
            except TrainingFailedError as error:
                cause = _cause(error)
                if isinstance(cause, WorkerDiedError) and (stalled := stall_message(job.signs)):
                    cause = WorkerDiedError(stalled)
                if not isinstance(cause, WorkerDiedError) or attempt == job.train.max_restarts:
                    raise cause from error
                _release()
                on_restart(f"{cause}; restart {attempt + 1} of {job.train.max_restarts}, from the newest checkpoint")


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


def _trainer(job: TrainJob, scratch: Path, use_gpu: bool, cores: int, reserved: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from llmdistill.trainer.ray_backend import ProcessGroupConfig

    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": None if use_gpu else cores},
        scaling_config=ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": cores,
                **({"GPU": 1} if use_gpu else {}),
                **({TRAIN: SHARE} if reserved else {}),
            },
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(scratch),
            # Ray Train hands out its second version's class, which mypy does not see.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=_START_ATTEMPTS),  # type: ignore[call-arg]
        ),
        torch_config=ProcessGroupConfig(backend="nccl" if use_gpu else "gloo"),
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
