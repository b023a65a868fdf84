"""Checkpoints: complete or absent, the newest found by itself, old ones removed.

A checkpoint is a folder step-00000123 with DeepSpeed's files and `state.json`. It is written as .step-00000123.tmp and
renamed by rank 0 once every rank has written its part: the final name is the commit.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llmdistill.errors import DataError
from llmdistill.trainer.average import save_average

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class CheckpointState:
    """What is known of a checkpoint without loading it."""

    step: int
    """Optimizer steps that are done."""
    total_steps: int
    workers: int
    zero_stage: int
    identity: dict[str, Any]
    """See `TrainJob.identity`."""
    factors: dict[str, float] = field(default_factory=dict)
    """Of the objectives' weights, where they are balanced."""
    best: dict[str, Any] | None = None
    """The best evaluation so far, as of `trainer/held_out.py`."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / "state.json").is_file()]
    return max(found, key=lambda path: path.name, default=None)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def checkpoint_to_export(folder: Path, best: bool) -> Path | None:
    """The newest checkpoint, or the best one by the evaluations before the newest; None where there is none.

    Raises:
        DataError: the best one is asked for and gone, or no evaluation was finite.

    """
    newest = latest_checkpoint(folder)
    if newest is None or not best:
        return newest
    record = read_state(newest).best
    found = checkpoint_folder(folder, record["step"]) if record and record["step"] else None
    if found is None or not (found / "state.json").is_file():
        what = "no evaluation was recorded" if found is None else f"the best checkpoint, {found.name}, is gone"
        fix = "set train.load_best_model_at_end to false to export the newest"
        raise DataError(f"{what}, and train.load_best_model_at_end asks for it", where=str(folder), fix=fix)
    return found


def read_state(checkpoint: Path) -> CheckpointState:
    """The state of a checkpoint.

    Raises:
        DataError: it cannot be read.

    """
    try:
        return CheckpointState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(checkpoint / "state.json")) from None


def require_same_training(found: CheckpointState, asked: CheckpointState, checkpoint: Path) -> None:
    """Refuse to continue another training.

    Raises:
        DataError: objectives, data or settings differ; the difference is shown.

    """
    differing = [
        f"{key}: the checkpoint has {found.identity.get(key)!r}, asked is {asked.identity.get(key)!r}"
        for key in sorted({*found.identity, *asked.identity})
        if found.identity.get(key) != asked.identity.get(key)
    ]
    if differing:
        raise DataError(
            "the checkpoint belongs to another training\n  " + "\n  ".join(differing),
            where=str(checkpoint),
            fix=f"go back to these settings, choose another output folder, or remove {checkpoint.parent}",
        )


def save_checkpoint(engine: Any, folder: Path, state: CheckpointState, keep: int) -> None:
    """Save on all ranks, commit on rank 0, remove all but the best one and the newest `keep`.

    Raises:
        DataError: the file system refuses.

    """
    name = checkpoint_folder(folder, state.step).name
    temporary = folder / f".{name}.tmp"
    leader = torch.distributed.get_rank() == 0
    if leader:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=temporary.name, save_latest=False, exclude_frozen_parameters=True)
        torch.distributed.barrier()
        if leader:
            if engine.zero_optimization_stage() == 0:
                save_average(engine, temporary)
            (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1) + "\n")
            shutil.rmtree(folder / name, ignore_errors=True)
            temporary.rename(folder / name)
            best = checkpoint_folder(folder, state.best["step"]) if state.best else None
            for old in sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))[:-keep]:
                if old != best:
                    shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write a checkpoint: {error}",
            where=str(folder),
            fix="make room, then run the same command again: it continues from the checkpoint before",
        ) from None
    torch.distributed.barrier()


def load_checkpoint(engine: Any, checkpoint: Path) -> None:
    """Load weights, optimizer and schedule into the engine, on all ranks.

    Args:
        engine: of `initialize`; for a folder of `universal_checkpoint`, initialised for one.
        checkpoint: of the same number of workers, or a folder of `universal_checkpoint`.

    Raises:
        DataError: DeepSpeed finds its files incomplete.

    """
    # Weights that are not trained come from the model folder; checkpoints leave them out.
    whole = all(parameter.requires_grad for parameter in engine.module.parameters())
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_module_strict=whole)
    if path is None:
        raise DataError("DeepSpeed cannot load it", where=str(checkpoint), fix="remove it; the one before is used")
