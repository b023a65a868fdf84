"""The exponential moving average of a student's weights, as one more state of the optimizer.

average ← decay · average + (1 - decay) · weights, after every optimizer step (Polyak & Juditsky 1992; Kingma & Ba 2014,
arXiv 1412.6980, section 7.2). The optimizer of ZeRO holds each worker's share of the weights in float32, so the average
is sharded as they are, costs 4 bytes a parameter over all workers together, and lies in every checkpoint. A step that
is skipped moves neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

AVERAGE = "ema"
"""Its name among the optimizer's states."""
AVERAGE_FILE = "average.safetensors"
"""Where a checkpoint has it that is not split."""


def track_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Let an optimizer keep the average of what it optimises; it starts with the weights before its first step.

    Args:
        optimizer: before DeepSpeed takes it.
        decay: 0 … 1.

    """
    first: dict[torch.Tensor, torch.Tensor] = {}

    def parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
        return (parameter for group in optimizer.param_groups for parameter in group["params"])

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in parameters(optimizer):
            # Not `optimizer.state[parameter]`, which makes an empty entry.
            if AVERAGE not in optimizer.state.get(parameter, {}):
                first[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if bool(getattr(optimizer, "found_inf", False)):
            first.clear()  # the step moved nothing, see `guard_plain_optimizer`
            return
        for parameter in parameters(optimizer):
            state = optimizer.state[parameter]
            if parameter in first:
                state[AVERAGE] = first.pop(parameter)
            state[AVERAGE].lerp_(parameter, 1 - decay)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
