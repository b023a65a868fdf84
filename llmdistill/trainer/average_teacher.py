"""The moving average of the student's weights as its teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llmdistill.student.average import AVERAGE


@torch.no_grad()
def follow_average(teacher: nn.Module, student: nn.Module, engine: Any) -> None:
    """Bring the teacher to the average that the optimizer keeps, on all ranks together.

    ZeRO holds the average in shares, so this gathers 4 bytes a parameter. As long as every step was skipped there is no
    average, and the teacher stays what it was: the student's first weights.

    Args:
        teacher: the student's architecture, whole.
        student: as the engine trains it.
        engine: of `initialize`, ZeRO 1 to 3.

    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_get_full_optimizer_state

    zero = engine.optimizer
    states = zero.optimizer.state
    if not states or not all(AVERAGE in state for state in states.values()):
        return
    if engine.zero_optimization_stage() < 3:
        # DeepSpeed links parameters to their states once, after the step of the first parameter group.
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, states)
    kept = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        kept[name].copy_(safe_get_full_optimizer_state(parameter, AVERAGE).view_as(kept[name]))
