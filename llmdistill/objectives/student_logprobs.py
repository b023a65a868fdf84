"""The student's log-probabilities where the objectives need them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmdistill.objectives.gather import gather_and_rest
from llmdistill.objectives.targets import DenseTargets, HeadTargets, TeacherTargets, TopKTargets, WeightedTargets


@dataclass(frozen=True)
class StudentLogprobs:
    """Log-probabilities at one temperature, all normalised over the full vocabulary; float32 or float64."""

    kept_RK: torch.Tensor
    """[R, K]: at the teacher's ids, or [R, V] for dense targets."""
    tail_R: torch.Tensor | None
    """[R]: log of the probability of all other ids together; -inf where there are none. None where nothing asks."""
    actual_R: torch.Tensor
    """[R]: at the actual token."""
    log_normalizer_R: torch.Tensor
    """[R]: log Σ_v exp(logit_v / temperature)."""


def student_logprobs(logits_RV: torch.Tensor, targets: TeacherTargets, temperature: float = 1.0) -> StudentLogprobs:
    """The student's side of the same rows, in one pass over the vocabulary.

    With top-k targets the rest is summed by itself, so that the tail is exact where 1 - Σ kept would round.

    Args:
        logits_RV: [R, V] over the real vocabulary, any floating type; computed in float32 at least.
        targets: ids below V.
        temperature: of the softmax.

    """
    if isinstance(targets, TopKTargets):
        return _beside_top_k(logits_RV, targets, temperature)
    if isinstance(targets, WeightedTargets):
        ids_RG = torch.cat([targets.ids_RK, targets.actual_ids_R.unsqueeze(1)], dim=1)
        gathered_RG, total_R = gather_and_rest(logits_RV, ids_RG, 0, temperature)
        logprobs_RG = gathered_RG - total_R.unsqueeze(1)
        return StudentLogprobs(logprobs_RG[:, :-1], None, logprobs_RG[:, -1], total_R)
    assert isinstance(targets, (DenseTargets, HeadTargets))
    scaled_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)) / temperature
    total_R = torch.logsumexp(scaled_RV, dim=1)
    logprobs_RV = scaled_RV - total_R.unsqueeze(1)
    return StudentLogprobs(
        logprobs_RV, None, logprobs_RV.gather(1, targets.actual_ids_R.unsqueeze(1)).squeeze(1), total_R
    )


def _beside_top_k(logits_RV: torch.Tensor, targets: TopKTargets, temperature: float) -> StudentLogprobs:
    ids_RK = targets.ids_RK
    if targets.valid_RK is not None:
        # Padding repeats the first id, so that it takes nothing else out of the rest.
        ids_RK = torch.where(targets.valid_RK, ids_RK, ids_RK[:, :1])
    ids_RG = torch.cat([ids_RK, targets.actual_ids_R.unsqueeze(1)], dim=1)
    gathered_RG, total_rest_R = gather_and_rest(logits_RV, ids_RG, ids_RK.shape[1], temperature)
    kept_RK, actual_R = gathered_RG[:, :-1], gathered_RG[:, -1]
    if targets.valid_RK is not None:
        kept_RK = kept_RK.masked_fill(~targets.valid_RK, -torch.inf)
    total_R = torch.logsumexp(torch.cat([kept_RK, total_rest_R.unsqueeze(1)], dim=1), dim=1)
    return StudentLogprobs(kept_RK - total_R.unsqueeze(1), total_rest_R - total_R, actual_R - total_R, total_R)
