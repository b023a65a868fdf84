"""Pure functions of a model's logits and the teacher's stored rows: a value per row, nothing reduced.

p is the teacher, q the model, both over the same real vocabulary. With the k most likely ids stored, "bucket" lays both
over these ids and one outcome for all others (`objectives/support.py`): an f-divergence is never above the one over the
full vocabulary, and Σ min(p, q) never below it.
"""

from __future__ import annotations

import torch

from llmdistill.evaluation.teacher_side import TeacherSide
from llmdistill.objectives.cross_entropy import token_ce, weighted_forward_kl
from llmdistill.objectives.divergence import forward_kl, reverse_kl
from llmdistill.objectives.rows import Rows
from llmdistill.objectives.support import Support

TOP = 5
"""Entries that `top5_agreement` compares."""


def model_values(logits_RV: torch.Tensor, teacher: TeacherSide) -> dict[str, torch.Tensor]:
    """What is known per row of one model beside its teacher, float64 [R] each.

    Always there: `cross_entropy` (of the actual token, nats), `confidence` (the model's largest probability), `correct`
    (its most likely token is the actual one). By kind of capture: `kl`, `reverse_kl`, `top1_agreement`,
    `top5_agreement`, `acceptance_rate` and `acceptance_rate_lower`; NaN where this row does not tell.

    Args:
        logits_RV: the model's, over the real vocabulary, float32 or float64.
        teacher: the same rows.

    """
    either = teacher.head if teacher.head is not None else teacher.weighted
    assert either is not None
    rows = Rows(logits_RV, either)
    logprobs_RV = logits_RV.log_softmax(dim=1)
    confidence_R, best_R = logprobs_RV.max(dim=1)
    cross_entropy_R = token_ce(rows.student())
    values = {
        "cross_entropy": cross_entropy_R,
        "confidence": confidence_R.exp(),
        "correct": best_R == teacher.actual_ids_R,
    }
    support = None
    if teacher.head is not None:
        support = rows.support(1.0, "bucket")
        upper_R, lower_R = overlap(support)
        values |= {
            "reverse_kl": reverse_kl(support.teacher_RE, support.student_RE),
            "top1_agreement": best_R == teacher.head.ids_RK[:, 0],
            "acceptance_rate": upper_R,
            "acceptance_rate_lower": lower_R,
        }
        if teacher.weighted is None and teacher.head.ids_RK.shape[1] >= TOP:
            values["top5_agreement"] = top_agreement(logits_RV, teacher.head.ids_RK)
    elif teacher.on_policy:
        # E over v ~ p of min(1, q(v)/p(v)) is Σ min(p, q): the test that speculative decoding itself makes.
        ratio_R = (-cross_entropy_R - teacher.actual_logprobs_R).exp()
        values["acceptance_rate"] = values["acceptance_rate_lower"] = ratio_R.clamp_max(1)
    if either.ids_RK.shape[1]:
        values["kl"] = _forward_kl(logits_RV, teacher, support, cross_entropy_R)
    return {name: value.double() for name, value in values.items()}


def _forward_kl(
    logits_RV: torch.Tensor, teacher: TeacherSide, support: Support | None, cross_entropy_R: torch.Tensor
) -> torch.Tensor:
    """KL(p ‖ q) [R]: the bucket's for `top_k`, without bias for the sampled kinds, NaN where nothing gives it.

    The sampled kinds need the teacher's entropy. Without it, `head_tail` has the bucket's over its exact head, and
    `sampled` log p(v) - log q(v) of the actual token v where that was drawn from p.
    """
    bucket_R = None if support is None else forward_kl(support.teacher_RE, support.student_RE)
    if teacher.weighted is None:
        assert bucket_R is not None
        return bucket_R
    unbiased_R = weighted_forward_kl(Rows(logits_RV, teacher.weighted).student(), teacher.weighted)
    if bucket_R is None and teacher.on_policy:
        bucket_R = teacher.actual_logprobs_R + cross_entropy_R
    return unbiased_R if bucket_R is None else torch.where(teacher.entropy_R.isnan(), bucket_R, unbiased_R)


def overlap(support: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ min(p, q) [R], the probability that a draft drawn from q is accepted for p: at most this, and at least this.

    Merging all ids outside the kept ones into a bucket can only raise it; leaving them out can only lower it.
    Source: Leviathan et al. 2023, arXiv 2211.17192, corollary 3.6.

    Args:
        support: kept ids, and the bucket in the last column.

    """
    smaller_RE = torch.minimum(support.teacher_RE, support.student_RE).exp()
    return smaller_RE.sum(dim=1), smaller_RE[:, :-1].sum(dim=1)


def top_agreement(logits_RV: torch.Tensor, ids_RK: torch.Tensor, count: int = TOP) -> torch.Tensor:
    """Share [R] of the teacher's `count` most likely tokens that are among the model's `count` most likely."""
    model_RC = logits_RV.topk(count, dim=1).indices
    return (model_RC.unsqueeze(2) == ids_RK[:, None, :count]).any(dim=2).double().mean(dim=1)


def teacher_values(teacher: TeacherSide) -> dict[str, torch.Tensor]:
    """The teacher's own `cross_entropy`, `confidence` and `correct`, and its `entropy`, float64 [R]; NaN if unknown.

    `stored_entropy` is what the engine told. Where it told none, `entropy` is that of the kept ids and one bucket,
    which is at most the full one.
    """
    unknown_R = torch.full_like(teacher.entropy_R, torch.nan)
    values = {"cross_entropy": -teacher.actual_logprobs_R, "confidence": unknown_R, "correct": unknown_R}
    entropy_R = teacher.entropy_R
    if teacher.head is not None:
        head = teacher.head
        probabilities_RK = head.logprobs_RK.exp()
        if head.valid_RK is not None:
            probabilities_RK = probabilities_RK * head.valid_RK
        parts_RE = torch.cat([probabilities_RK, (1 - head.mass_R).clamp_min(0).unsqueeze(1)], dim=1)
        bucket_R = torch.special.entr(parts_RE).sum(dim=1)
        entropy_R = torch.where(entropy_R.isnan(), bucket_R, entropy_R)
        values["confidence"] = probabilities_RK[:, 0]
        values["correct"] = (head.ids_RK[:, 0] == teacher.actual_ids_R).float()
    return {
        name: value.double()
        for name, value in (values | {"entropy": entropy_R, "stored_entropy": teacher.entropy_R}).items()
    }
