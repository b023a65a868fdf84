"""Objectives on tokens rather than on whole distributions: a value per row, reduced elsewhere."""

from __future__ import annotations

import torch

from llmdistill.objectives.student_logprobs import StudentLogprobs
from llmdistill.objectives.support import floored
from llmdistill.objectives.targets import WeightedTargets


def token_ce(student: StudentLogprobs) -> torch.Tensor:
    """-log q(actual token), of a student at temperature 1.

    `sequence_ce` where the teacher wrote the text (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947),
    `hard_ce` where the text is the data's own.

    Returns:
        [R], in nats.

    """
    return -floored(student.actual_R)


def weighted_forward_kl(student: StudentLogprobs, targets: WeightedTargets) -> torch.Tensor:
    """Σ_k weight_k · (-log q(id_k)) - entropy: over the draws it averages to KL(p ‖ q) exactly, gradient included.

    A single row may be negative. Without a stored entropy the value is the cross-entropy, which differs from the
    divergence by a constant. Source: Anshumann et al. 2025, arXiv 2503.16870.

    Returns:
        [R], in nats.

    """
    cross_entropy_R = -(targets.weights_RK.to(student.kept_RK.dtype) * floored(student.kept_RK)).sum(dim=1)
    return cross_entropy_R if targets.entropy_R is None else cross_entropy_R - targets.entropy_R


def z_loss(student: StudentLogprobs) -> torch.Tensor:
    """(log Σ_v exp(logit_v))², of a student at temperature 1: keeps logits from drifting away.

    Source: PaLM, arXiv 2204.02311, section 5; weight 1e-4 there.

    Returns:
        [R].

    """
    return student.log_normalizer_R**2
