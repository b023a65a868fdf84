"""The weighted total of a step, and the one place where values per row are reduced.

total = Σ_objective weight · Σ_rows value / (supervised rows of the whole step, over all ranks and micro-batches)

The denominator is an argument: whoever knows the whole step passes it in, so that neither ranks nor accumulation change
the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from llmdistill.objectives.cross_entropy import sequence_ce
from llmdistill.objectives.divergence import forward_kl
from llmdistill.objectives.targets import StudentLogprobs, TeacherTargets, student_logprobs

Objective = Callable[[StudentLogprobs, TeacherTargets], torch.Tensor]

OBJECTIVES: dict[str, Objective] = {"forward_kl": forward_kl, "sequence_ce": sequence_ce}
"""By the name that stands in the configuration."""


def row_sums(logits_RV: torch.Tensor, targets: TeacherTargets, names: list[str]) -> torch.Tensor:
    """Σ_rows value of each objective: float32 [len(names)]."""
    student = student_logprobs(logits_RV, targets)
    return torch.stack([OBJECTIVES[name](student, targets).sum() for name in names])


def weighted_total(sums: torch.Tensor, weights: Mapping[str, float], global_rows: int) -> torch.Tensor:
    """The scalar to differentiate, from `row_sums` in the order of `weights`.

    Args:
        sums: [len(weights)].
        weights: objective name → weight.
        global_rows: supervised rows of the whole optimizer step; a step without any has the total 0.

    """
    return (sums * sums.new_tensor(list(weights.values()))).sum() / max(global_rows, 1)
