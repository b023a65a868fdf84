"""Cross-entropies on single tokens: a value per row, reduced elsewhere."""

from __future__ import annotations

import torch

from llmdistill.objectives.targets import StudentLogprobs, TeacherTargets


def sequence_ce(student: StudentLogprobs, targets: TeacherTargets) -> torch.Tensor:
    """-log q(token of the teacher's response): sequence-level distillation.

    Source: Kim and Rush 2016, arXiv 1606.07947.

    Returns:
        float32 [R], in nats.

    """
    return -student.actual_R
