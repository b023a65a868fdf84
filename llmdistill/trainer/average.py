"""The moving average that the optimizer keeps of the weights: taken out of it, and put back by another split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from llmdistill.student.average import AVERAGE, AVERAGE_FILE


@torch.no_grad()
def follow_average(teacher: nn.Module, student: nn.Module, engine: Any) -> None:
    """Bring a teacher to the average, on all ranks together.

    ZeRO holds the average in shares, so this gathers 4 bytes a parameter. As long as every step was skipped there is no
    average, and the teacher stays what it was: the student's first weights.

    Args:
        teacher: the student's architecture, whole.
        student: as the engine trains it.
        engine: of `initialize`.

    """
    kept = dict(teacher.named_parameters())
    for name, average in _averages(student, engine):
        kept[name].copy_(average.view_as(kept[name]))


def save_average(engine: Any, folder: Path) -> None:
    """Write the whole average beside DeepSpeed's files of ZeRO stage 0, whose optimizer knows no names.

    Args:
        engine: of `initialize`, at stage 0.
        folder: a checkpoint that is not committed yet.

    """
    averages = dict(_averages(engine.module, engine))
    if averages:
        save_file({name: average.contiguous() for name, average in averages.items()}, folder / AVERAGE_FILE)


def load_sharded_average(engine: Any, universal: Path) -> None:
    """Give each rank its share of the average at ZeRO stage 3; DeepSpeed does so itself at stages 1 and 2.

    Args:
        engine: that has loaded the checkpoint.
        universal: a folder of `universal_checkpoint` with averages.

    """
    zero = engine.optimizer
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        average, offset = torch.zeros_like(flat), 0
        for parameter in group:
            place = universal / "zero" / zero.param_names[parameter]
            share = zero.load_hp_checkpoint_state(str(place), AVERAGE, param=parameter)
            average.narrow(0, offset, share.numel()).copy_(share)
            offset += share.numel()
        zero.optimizer.state[flat][AVERAGE] = average


def _averages(module: nn.Module, engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and whole average, float32, of each trained weight; nothing while there is no average."""
    states = engine.basic_optimizer.state
    if not states or not all(AVERAGE in state for state in states.values()):
        return
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if engine.zero_optimization_stage() == 0:
        masters = _masters(engine)
        yield from ((name, states[masters[parameter]][AVERAGE]) for name, parameter in trained)
        return
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_get_full_optimizer_state

    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        # DeepSpeed links parameters to their states once, after the step of the first parameter group.
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, states)
    for name, parameter in trained:
        yield name, safe_get_full_optimizer_state(parameter, AVERAGE)


def _masters(engine: Any) -> dict[torch.Tensor, torch.Tensor]:
    """At stage 0: parameter → what the optimizer steps, which in 16 bits is a copy in float32."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        return {parameter: parameter for group in optimizer.param_groups for parameter in group["params"]}
    return dict(zip(chain(*optimizer.fp16_groups), chain(*optimizer.fp32_groups), strict=True))
