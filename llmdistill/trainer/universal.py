"""Checkpoints for another number of workers, through DeepSpeed's universal format."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from llmdistill.errors import DataError
from llmdistill.student.average import AVERAGE
from llmdistill.trainer.checkpoint import CheckpointState


def needs_reshaping(state: CheckpointState, workers: int) -> bool:
    """Whether a checkpoint is split over another number of workers; stage 0 keeps everything whole."""
    return state.workers != workers and state.zero_stage > 0


def universal_checkpoint(checkpoint: Path, average: bool) -> Path:
    """The same checkpoint in DeepSpeed's universal format, which any number of workers loads. All ranks call it.

    Rank 0 converts; the folder lies beside the checkpoint under a hidden name until `remove_universal`.

    Args:
        checkpoint: of ZeRO stage 1, 2 or 3.
        average: whether the training keeps a moving average of the weights, which comes along.

    Raises:
        DataError: DeepSpeed cannot convert it; raised on every rank.

    """
    folder = checkpoint.with_name(f".{checkpoint.name}.universal")
    message: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        message[0] = _convert(checkpoint, folder) or (_convert_average(checkpoint, folder) if average else None)
    torch.distributed.broadcast_object_list(message)
    if message[0] is not None:
        raise DataError(
            f"DeepSpeed cannot convert it for another number of workers: {message[0]}",
            where=str(checkpoint),
            fix="continue with the number of workers in its state.json",
        )
    return folder


def remove_universal(folder: Path) -> None:
    """Remove a folder of `universal_checkpoint` once every rank has loaded it."""
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(checkpoint: Path, folder: Path) -> str | None:
    """Why it failed; None: it is done."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--input_folder", str(checkpoint), "--output_folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["it failed"])[-1] if done.returncode else None


def _convert_average(checkpoint: Path, folder: Path) -> str | None:
    """The universal format has places for Adam's moments alone: the average goes through one of them."""
    disguised = folder.with_name(f"{folder.name}.average")
    converted = folder.with_name(f"{folder.name}.averages")
    try:
        disguised.mkdir()
        for path in checkpoint.glob("*.pt"):
            if path.name.endswith("_optim_states.pt"):
                saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
                for state in _base_states(saved).values():
                    if AVERAGE not in state:
                        return f"{path.name} holds no average of the weights"
                    state["exp_avg"] = state["exp_avg_sq"] = state[AVERAGE]
                torch.save(saved, disguised / path.name)
            else:
                (disguised / path.name).symlink_to(path)
        if message := _convert(disguised, converted):
            return message
        for path in converted.glob("zero/*/exp_avg.pt"):
            path.rename(folder / "zero" / path.parent.name / f"{AVERAGE}.pt")
        return None
    finally:
        shutil.rmtree(disguised, ignore_errors=True)
        shutil.rmtree(converted, ignore_errors=True)


def _base_states(saved: dict[str, Any]) -> dict[int, dict[str, Any]]:
    from deepspeed.checkpoint.constants import BASE_OPTIMIZER_STATE, FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT

    zero = saved[OPTIMIZER_STATE_DICT]
    base = zero[OPTIMIZER_STATE_DICT if FP32_FLAT_GROUPS in zero else BASE_OPTIMIZER_STATE]
    states: dict[int, dict[str, Any]] = base["state"]
    return states
