"""Divergences between teacher and student: a value per row, reduced elsewhere."""

from __future__ import annotations

import torch

from llmdistill.objectives.targets import StudentLogprobs, TeacherTargets


def forward_kl(student: StudentLogprobs, targets: TeacherTargets) -> torch.Tensor:
    """KL(teacher ‖ student) = Σ p·log(p/q), with one bucket on both sides for everything outside the kept ids.

    Merging outcomes cannot raise a divergence (data-processing inequality), so this is never above the divergence over
    the full vocabulary, never negative, and zero with zero gradient when the two agree.

    Source: Kullback and Leibler 1951; the bucket: Cover and Thomas, Elements of Information Theory, section 2.8.

    Returns:
        float32 [R], in nats.

    """
    p_RK = targets.logprobs_RK.exp()
    kept_R = (p_RK * (targets.logprobs_RK - student.kept_RK)).sum(dim=1)
    p_tail_R = (1 - targets.mass_R).clamp_min(0)
    has_tail_R = (p_tail_R > 0) & (student.tail_R > -torch.inf)
    # The inner `where` keeps 0·inf out of the backward pass.
    log_ratio_R = torch.where(has_tail_R, p_tail_R, 1).log() - torch.where(has_tail_R, student.tail_R, 0)
    return kept_R + p_tail_R * torch.where(has_tail_R, log_ratio_R, 0)
