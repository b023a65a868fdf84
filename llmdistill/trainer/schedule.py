"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, total_steps: int, warmup_ratio: float, min_ratio: float) -> float:
    """Share of the peak rate at optimizer step `step` (the first is 0): linear warm-up, then half a cosine.

    Args:
        step: 0 … total_steps - 1.
        total_steps: steps of the whole run.
        warmup_ratio: share of the steps that climb.
        min_ratio: share of the peak where the cosine ends.

    """
    warmup = math.ceil(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - 1 - warmup, 1)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
