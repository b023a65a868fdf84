"""The same training without Ray: this process is one worker of `torchrun` or of the `deepspeed` launcher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from llmdistill.config.train import TrainConfig
from llmdistill.errors import ConfigError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_worker() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return all(name in os.environ for name in _VARIABLES)


@contextmanager
def process_group(train: TrainConfig) -> Iterator[int]:
    """Within this context the ranks can talk; gives the own rank.

    Raises:
        ConfigError: the launcher started another number of ranks than `train.workers`.

    """
    world = int(os.environ["WORLD_SIZE"])
    if world != train.workers:
        raise ConfigError(
            f"{world} processes were launched, and train.workers is {train.workers}",
            where="train.workers",
            fix=f"launch {train.workers} processes, or add train.workers={world}",
        )
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()
