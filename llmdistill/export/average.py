"""A checkpoint whose weights are the moving average that `student/average.py` kept."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmdistill.errors import DataError
from llmdistill.student.average import AVERAGE, AVERAGE_FILE


def training_identity(checkpoint: Path) -> dict[str, Any]:
    """The settings of the training that a checkpoint belongs to."""
    identity: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())["identity"]
    return identity


def has_average(checkpoint: Path) -> bool:
    """Whether the training of a checkpoint kept an average."""
    return training_identity(checkpoint).get("train.ema_decay") is not None


def average_file(checkpoint: Path) -> Path:
    """The average of a checkpoint that is not split.

    Raises:
        DataError: there is none.

    """
    path = checkpoint / AVERAGE_FILE
    if not path.is_file():
        raise DataError("it holds no average of the weights, and train.ema_decay was set", where=str(checkpoint))
    return path


@contextmanager
def averaged_checkpoint(checkpoint: Path) -> Iterator[Path]:
    """Within this context: a checkpoint of DeepSpeed's form that holds the average in the place of the weights.

    Raises:
        DataError: a rank's file holds no average.

    """
    folder = checkpoint.with_name(f".{checkpoint.name}.{uuid.uuid4().hex}.average")
    folder.mkdir()
    try:
        for path in checkpoint.glob("*.pt"):
            if path.name.endswith("_optim_states.pt"):
                saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
                torch.save(_averaged(saved, path), folder / path.name)
            else:
                (folder / path.name).symlink_to(path)
        yield folder
    finally:
        shutil.rmtree(folder)


def _averaged(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    from deepspeed.checkpoint.constants import (
        BASE_OPTIMIZER_STATE,
        FP32_FLAT_GROUPS,
        OPTIMIZER_STATE_DICT,
        SINGLE_PARTITION_OF_FP32_GROUPS,
    )

    zero = saved[OPTIMIZER_STATE_DICT]
    weights, states = (
        (FP32_FLAT_GROUPS, zero[OPTIMIZER_STATE_DICT])
        if FP32_FLAT_GROUPS in zero
        else (SINGLE_PARTITION_OF_FP32_GROUPS, zero[BASE_OPTIMIZER_STATE])
    )
    averages = [state.get(AVERAGE) for _, state in sorted(states["state"].items())]
    if len(averages) != len(zero[weights]) or any(average is None for average in averages):
        raise DataError("it holds no average of the weights, and train.ema_decay was set", where=str(path))
    # The weights are saved without the padding that makes all shares equal.
    zero[weights] = [average[: len(group)] for average, group in zip(averages, zero[weights], strict=True)]
    states["state"] = {}
    return saved
