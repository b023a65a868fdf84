"""Runs training jobs in real processes over gloo, without Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from llmdistill.errors import LLMDistillError
from llmdistill.trainer.job import TrainJob


def run_ranks(job: TrainJob, before: Callable[[int], None] | None = None) -> None:
    """Train with `job.train.workers` processes; raises if one fails.

    Args:
        job: the training.
        before: called in each process with its rank; a function of a module.

    """
    _spawn(_rank, job.train.workers, ([job], before or nothing, None))


def run_each(jobs: Sequence[TrainJob], folder: Path) -> list[str]:
    """Train one job after the other in the same processes; the error of each on rank 0, or an empty text.

    Args:
        jobs: of the same number of workers.
        folder: for the errors.

    """
    _spawn(_rank, jobs[0].train.workers, (list(jobs), nothing, folder))
    return [(folder / f"error-{number}").read_text() for number in range(len(jobs))]


def nothing(rank: int) -> None:
    """Nothing; spawned processes need functions with a name."""


def _spawn(function: Callable[..., None], workers: int, arguments: tuple[object, ...]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(function, args=(port, *arguments), nprocs=workers, join=True)


def _rank(rank: int, port: int, jobs: list[TrainJob], before: Callable[[int], None], errors: Path | None) -> None:
    workers = jobs[0].train.workers
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(workers),
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    before(rank)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=workers)
    from llmdistill.trainer.loop import run_training

    try:
        for number, job in enumerate(jobs):
            message = ""
            try:
                run_training(job)
            except LLMDistillError as error:
                if errors is None:
                    raise
                message = str(error)
            if errors is not None and rank == 0:
                (errors / f"error-{number}").write_text(message)
    finally:
        torch.distributed.destroy_process_group()


def job_for(folder: Path, cache: Path, init: Path, **train: object) -> TrainJob:
    """A small job in float32 whose files lie in `folder`."""
    from llmdistill.config.objectives import ForwardKLConfig, SequenceCEConfig
    from llmdistill.config.train import TrainConfig

    settings = {
        "epochs": 3,
        "lr": 3e-3,
        "sequence_length": 40,
        "tokens_per_step": 160,
        "precision": "fp32",
        "save_steps": 4,
        "workers": 2,
        **train,
    }
    return TrainJob(
        name="student",
        cache=cache,
        held_out=0.0,
        init=init,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        objectives=(ForwardKLConfig(type="forward_kl", weight=0.9), SequenceCEConfig(type="sequence_ce", weight=0.1)),
        train=TrainConfig.model_validate(settings),
    )
