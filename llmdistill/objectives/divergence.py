"""Divergences of a student q from a teacher p: a value per row, reduced elsewhere.

All take log p and log q [R, E] over the same E outcomes and return [R] in nats. Both are at least `LOG_FLOOR` (see
`support.py`), so no value and no gradient here is NaN or infinite. Gradients flow to the student; the teacher's side
may carry one too, which nothing in training uses.

Each is at least 0, and 0 where p = q with gradient 0 (except for the total variation, whose gradient is bounded but not
continuous there), as long as both sides sum to 1: under all policies but `none`.
"""

from __future__ import annotations

import math

import torch

from llmdistill.objectives.support import floored


def forward_kl(teacher_RE: torch.Tensor, student_RE: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p·log(p/q). Source: Kullback and Leibler 1951; for distillation Hinton et al., arXiv 1503.02531."""
    return (teacher_RE.exp() * (teacher_RE - student_RE)).sum(dim=1)


def reverse_kl(teacher_RE: torch.Tensor, student_RE: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ p) = Σ q·log(q/p). Source: MiniLLM, arXiv 2306.08543."""
    return forward_kl(student_RE, teacher_RE)


def jsd(teacher_RE: torch.Tensor, student_RE: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """β·KL(p ‖ m) + (1-β)·KL(q ‖ m) with m = β·p + (1-β)·q; β = 0 means the forward KL and β = 1 the reverse KL.

    Those are the limits of this value divided by β (or 1-β), which is why the ends are set apart. At most
    -β·log β - (1-β)·log(1-β) ≤ log 2. Source: GKD, arXiv 2306.13649, equation 3.
    """
    if beta in (0.0, 1.0):
        return forward_kl(teacher_RE, student_RE) if beta == 0.0 else reverse_kl(teacher_RE, student_RE)
    mixture_RE = log_mixture(teacher_RE, student_RE, beta)
    return beta * forward_kl(teacher_RE, mixture_RE) + (1 - beta) * forward_kl(student_RE, mixture_RE)


def skew_forward_kl(teacher_RE: torch.Tensor, student_RE: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """KL(p ‖ α·p + (1-α)·q). Source: DistiLLM, arXiv 2402.03898, equation 4."""
    return forward_kl(teacher_RE, log_mixture(teacher_RE, student_RE, alpha))


def skew_reverse_kl(teacher_RE: torch.Tensor, student_RE: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """KL(q ‖ (1-α)·p + α·q). Source: DistiLLM, arXiv 2402.03898."""
    return forward_kl(student_RE, log_mixture(teacher_RE, student_RE, 1 - alpha))


def total_variation(teacher_RE: torch.Tensor, student_RE: torch.Tensor) -> torch.Tensor:
    """½ Σ |p - q|, at most 1; it has no derivative where an outcome has p = q. Source: f-DISTILL, arXiv 2307.15190."""
    return 0.5 * (teacher_RE.exp() - student_RE.exp()).abs().sum(dim=1)


def alpha_beta(
    teacher_RE: torch.Tensor, student_RE: torch.Tensor, alpha: float = 0.5, beta: float = 0.5
) -> torch.Tensor:
    """-1/(αβ) Σ [p^α·q^β - α/(α+β)·p^(α+β) - β/(α+β)·q^(α+β)], with its limits at α = 0 and at β = 0.

    (1, 0) is the forward KL, (0, 1) the reverse KL, (½, ½) four times the squared Hellinger distance, (1, 1) half the
    squared Euclidean one. Only for α + β = 1 is it an f-divergence, which a bucket never raises.

    Source: Cichocki et al. 2011, Entropy 13(1); for distillation ABKD, arXiv 2505.04560.

    Args:
        teacher_RE: log p.
        student_RE: log q.
        alpha: at least 0.
        beta: at least 0, and not 0 together with alpha.

    """
    assert alpha >= 0 and beta >= 0 and alpha + beta > 0
    if beta == 0.0:
        return _one_sided(teacher_RE, student_RE, alpha)
    if alpha == 0.0:
        return _one_sided(student_RE, teacher_RE, beta)
    both = alpha + beta
    terms_RE = (
        alpha / both * (both * teacher_RE).exp()
        + beta / both * (both * student_RE).exp()
        - (alpha * teacher_RE + beta * student_RE).exp()
    )
    return terms_RE.sum(dim=1) / (alpha * beta)


def _one_sided(first_RE: torch.Tensor, second_RE: torch.Tensor, power: float) -> torch.Tensor:
    """1/a² Σ [x^a·log(x^a / y^a) - x^a + y^a]."""
    x_RE, y_RE = power * first_RE, power * second_RE
    return (x_RE.exp() * (x_RE - y_RE) - x_RE.exp() + y_RE.exp()).sum(dim=1) / power**2


def log_mixture(first_RE: torch.Tensor, second_RE: torch.Tensor, share: float) -> torch.Tensor:
    """log(share · first + (1 - share) · second), of logarithms."""
    if share in (0.0, 1.0):
        return first_RE if share == 1.0 else second_RE
    return floored(torch.logaddexp(first_RE + math.log(share), second_RE + math.log(1 - share)))
