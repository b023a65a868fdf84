"""What an objective sees of the teacher and of the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's side of R supervised rows."""

    actual_ids_R: torch.Tensor
    """int64 [R]: the token that really follows each row."""
    ids_RK: torch.Tensor
    """int64 [R, K]: kept ids, all different within a row."""
    logprobs_RK: torch.Tensor
    """float32 [R, K]: their log-probabilities at temperature 1 over the full vocabulary."""
    mass_R: torch.Tensor
    """float32 [R]: the sum of the kept probabilities; what is missing to 1 is the tail."""

    def rows(self, start: int, stop: int) -> TeacherTargets:
        """The rows start … stop - 1."""
        return TeacherTargets(*(getattr(self, name)[start:stop] for name in TeacherTargets.__dataclass_fields__))


@dataclass(frozen=True)
class StudentLogprobs:
    """The student's log-probabilities where the objectives need them, all normalised over the full vocabulary."""

    kept_RK: torch.Tensor
    """float32 [R, K]: at the teacher's kept ids."""
    tail_R: torch.Tensor
    """float32 [R]: log of the probability of all other ids together; -inf where there are none."""
    actual_R: torch.Tensor
    """float32 [R]: at the actual token."""


def student_logprobs(logits_RV: torch.Tensor, targets: TeacherTargets) -> StudentLogprobs:
    """Gather the student's log-probabilities in one pass over the vocabulary.

    The normaliser is logaddexp(kept, rest) with the rest summed by itself, so that the tail is exact where 1 - Σ kept
    would be lost to rounding.

    Args:
        logits_RV: [R, V] over the real vocabulary, any floating type; computed in float32 at least.
        targets: ids below V.

    """
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    kept_RK = logits_RV.gather(1, targets.ids_RK)
    total_kept_R = torch.logsumexp(kept_RK, dim=1)
    actual_R = logits_RV.gather(1, targets.actual_ids_R.unsqueeze(1)).squeeze(1)
    if targets.ids_RK.shape[1] == logits_RV.shape[1]:
        total_R = total_kept_R
        tail_R = torch.full_like(total_R, -torch.inf)
    else:
        total_rest_R = torch.logsumexp(logits_RV.scatter(1, targets.ids_RK, -torch.inf), dim=1)
        total_R = torch.logaddexp(total_kept_R, total_rest_R)
        tail_R = total_rest_R - total_R
    return StudentLogprobs(kept_RK - total_R.unsqueeze(1), tail_R, actual_R - total_R)
