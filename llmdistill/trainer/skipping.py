"""Steps whose loss or gradient is not finite: skipped on every rank, counted, and too many of them end the training.

A value that is not finite makes the gradient of its rank NaN (`poisoned`), and so the global norm of all ranks:
DeepSpeed then leaves weights and optimizer alone, at every ZeRO stage. No rank asks another before it is known that a
step was skipped.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from llmdistill.config.train import TrainConfig
from llmdistill.errors import TrainingError
from llmdistill.trainer.data import Step

_WINDOW = 100
"""Steps of which `train.max_skipped_share` is a share."""
_MOST_OVERFLOWS = 50
"""Steps in a row that may overflow in fp16."""
_SHOWN_KEYS = 8


@dataclass(frozen=True)
class Skipped:
    """What made a step impossible."""

    objectives: tuple[str, ...]
    """Names of those whose value was not finite; none: the gradient alone was not."""
    keys: tuple[str, ...]
    """Keys, in hexadecimal, of the records of the micro-batches concerned, on all ranks."""

    def values(self) -> dict[str, list[str]]:
        """For the log."""
        return {"not_finite": list(self.objectives) or ["gradient"], "records": list(self.keys)}


def poisoned(factor: float, total: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The factor of a micro-batch's loss: NaN where loss or objectives are not finite. Needs no synchronisation.

    Args:
        factor: for a sound micro-batch.
        total: the weighted loss.
        values: [objectives].

    """
    finite = total.detach().isfinite() & values.isfinite().all()
    return torch.where(finite, factor, math.nan)


def guard_plain_optimizer(engine: Any) -> None:
    """Before the optimizer's step: look at the gradients where DeepSpeed does not, at ZeRO stage 0 in float32.

    DeepSpeed counts a step as skipped where the optimizer has an `overflow`; torch's fused AdamW moves nothing where
    its `found_inf` is 1.
    """
    if engine.optimizer is not engine.basic_optimizer or not engine.is_gradient_accumulation_boundary():
        return
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    engine.optimizer.overflow = not bool(norm.isfinite())
    engine.optimizer.found_inf = torch.tensor(float(engine.optimizer.overflow), device=norm.device)


def find_cause(step: Step, values_MO: torch.Tensor, names: list[str]) -> Skipped:
    """Ask all ranks what was not finite in a skipped step.

    Args:
        step: this rank's part of it.
        values_MO: the objectives' values of its micro-batches.
        names: of the objectives.

    """
    bad_MO = (~values_MO.isfinite()).tolist()
    mine = [(row, [key.hex() for key in keys]) for row, keys in zip(bad_MO, step.keys, strict=True)]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    parts = [part for rank in everyone for part in rank]
    concerned = [part for part in parts if any(part[0])] or parts
    bad = [name for number, name in enumerate(names) if any(row[number] for row, _ in parts)]
    return Skipped(tuple(bad), tuple(key for _, keys in concerned for key in keys))


class SkipLimit:
    """Ends a training that skips too much."""

    def __init__(self, train: TrainConfig) -> None:
        self._train = train
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._overflows = 0
        self._last: tuple[int, Skipped | None] = (0, None)

    def note(self, step: int, skipped: Skipped | None) -> None:
        """Take note of a step (the first is 1)."""
        # With fp16 a gradient beyond its range is how the loss scale is found.
        overflow = skipped is not None and not skipped.objectives and self._train.precision == "fp16"
        self._overflows = self._overflows + 1 if overflow else 0
        self._recent.append(skipped is not None and not overflow)
        self._last = (step, skipped)

    def check(self) -> None:
        """After each step, when it has been logged.

        Raises:
            TrainingError: it was skipped, and with it more steps than the settings allow.

        """
        step, skipped = self._last
        if self._overflows >= _MOST_OVERFLOWS:
            raise TrainingError(
                f"{_MOST_OVERFLOWS} steps in a row overflowed in fp16, the last is step {step}",
                fix="use train.precision: bf16",
            )
        if skipped is None or sum(self._recent) <= self._train.max_skipped_share * _WINDOW:
            return
        what = " and ".join(skipped.objectives) or "the gradient"
        more = len(skipped.keys) - _SHOWN_KEYS
        raise TrainingError(
            f"{what} was not finite in step {step}, as in {sum(self._recent)} of the last {len(self._recent)} steps:"
            f" more than train.max_skipped_share allows; records {', '.join(skipped.keys[:_SHOWN_KEYS])}"
            + (f" and {more} more (in metrics.jsonl)" if more > 0 else ""),
            fix="look at these records (`llmdistill cache show`) and at the student's first weights, or lower train.lr",
        )
