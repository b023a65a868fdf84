"""Runs a training job in real processes over gloo, without Ray."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from llmdistill.trainer.job import TrainJob


def run_ranks(job: TrainJob) -> None:
    """Train with `job.train.workers` processes; raises if one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(job, port), nprocs=job.train.workers, join=True)


def _rank(rank: int, job: TrainJob, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(job.train.workers),
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=job.train.workers)
    from llmdistill.trainer.loop import run_training

    try:
        run_training(job)
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
