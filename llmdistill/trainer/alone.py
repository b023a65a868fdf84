"""A training in this process alone, as the only worker, without a launcher."""

from __future__ import annotations

import gc
import os

from llmdistill.trainer.job import TrainJob


def train_alone(job: TrainJob, threads: int | None) -> None:
    """Train in this process; it may do so again and again, and leaves a process group of one.

    Args:
        job: of one worker.
        threads: of torch; None: its own choice.

    Raises:
        TrainingError, DataError: the training failed.

    """
    import torch

    from llmdistill.trainer.loop import run_training

    cuda = torch.cuda.is_available()
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        if not cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        run_training(job)
    finally:
        gc.collect()  # an engine is a ring of references, and the next one needs its memory
        if cuda:
            torch.cuda.empty_cache()
