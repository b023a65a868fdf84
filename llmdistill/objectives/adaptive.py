"""Objectives whose target or mixture depends on where the student is; that dependence is held constant in backward."""

from __future__ import annotations

import torch

from llmdistill.objectives.divergence import forward_kl, reverse_kl


def adaptive_kl(teacher_RE: torch.Tensor, student_RE: torch.Tensor, head_mass: float = 0.5) -> torch.Tensor:
    """w·KL(p ‖ q) + (1-w)·KL(q ‖ p) with w from `head_share`.

    Forward where the heads differ, reverse where the tails do.

    Source: Wu et al. 2024, arXiv 2404.02657 (AKL), equations 12 and 13.

    Returns:
        [R], in nats; 0 where p = q.

    """
    share_R = head_share(teacher_RE, student_RE, head_mass)
    return share_R * forward_kl(teacher_RE, student_RE) + (1 - share_R) * reverse_kl(teacher_RE, student_RE)


def head_share(teacher_RE: torch.Tensor, student_RE: torch.Tensor, head_mass: float) -> torch.Tensor:
    """The part of Σ |p - q| that lies in the teacher's head, without a graph; ½ where p = q.

    The head is the most likely outcomes up to a mass of `head_mass`, and always the first.

    Returns:
        [R], 0 … 1.

    """
    p_RE, order_RE = teacher_RE.detach().exp().sort(dim=1, descending=True, stable=True)
    gaps_RE = (p_RE - student_RE.detach().exp().gather(1, order_RE)).abs()
    in_head_RE = p_RE.cumsum(dim=1) <= head_mass
    in_head_RE[:, 0] = True
    head_R, all_R = (gaps_RE * in_head_RE).sum(dim=1), gaps_RE.sum(dim=1)
    return torch.where(all_R > 0, head_R / torch.where(all_R > 0, all_R, 1), 0.5)


def taid(teacher_RE: torch.Tensor, student_RE: torch.Tensor, share: float) -> torch.Tensor:
    """KL(p_t ‖ q) with the moving target p_t ∝ q^(1-t) · p^t, q held constant in it.

    The target walks from the student (t = 0, value 0) to the teacher (t = 1, the forward KL) as training goes on.

    Source: TAID, arXiv 2501.16937, equation 3; here with t as a function of the step.

    Args:
        teacher_RE: log p.
        student_RE: log q.
        share: t.

    """
    target_RE = torch.lerp(student_RE.detach(), teacher_RE, share).log_softmax(dim=1)
    return forward_kl(target_RE, student_RE)
