"""Numbers that change while a training runs, as pure functions of its progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end`; for weights, temperatures, and the target of `taid`."""

    start: float
    end: float
    shape: Literal["constant", "linear", "cosine"] = "linear"
    """`constant` is `end` throughout; `cosine` is half a cosine, flat at both ends."""
    until: float = 1.0
    """Share of the training after which `end` holds."""

    def at(self, progress: float) -> float:
        """The value at a progress from 0 (first step) to 1 (last step)."""
        if self.shape == "constant" or progress >= self.until:
            return self.end
        share = progress / self.until
        if self.shape == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return self.start + (self.end - self.start) * share
