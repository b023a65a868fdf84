"""Likelihoods of pieces of text, for a teacher and a student whose tokens differ.

Both give a chunk of text one probability: the product over the tokens that spell it. A chunk is written next, or it is
not: on these two outcomes the divergence is exact, whatever the tokens are. Source: Minixhofer, Vulić and Ponti 2025,
approximate likelihood matching, arXiv 2503.20083 (their binarised KL with a temperature on the likelihoods; without
their debiasing of chunks).
"""

from __future__ import annotations

import math

import torch

from llmdistill.objectives.chunked_head import CHUNK_BYTES, HeadSums, chunked_head
from llmdistill.objectives.cross_entropy import token_ce
from llmdistill.objectives.rows import Rows
from llmdistill.objectives.targets import WeightedTargets, softcapped
from llmdistill.objectives.terms import Term

CERTAIN = -(2.0**-20)
"""Log-probabilities above it count as it. A float32 softmax cannot tell them apart, and at 0 the gradient of log(1 - q)
has no bound."""


def likelihood_matching(student_E: torch.Tensor, teacher_E: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """τ·KL between "this chunk follows, or another" of the teacher and of the student, at likelihoods to the power 1/τ.

    With p = exp(teacher/τ) and q = exp(student/τ): τ·(p log(p/q) + (1-p) log((1-p)/(1-q))). The paper has no factor τ;
    it keeps values and gradients at one scale, as T² does for softmaxes: for τ → ∞ the value goes to
    t log(t/s) - t + s with t = -teacher and s = -student.

    Args:
        student_E: log-probabilities of the chunks, at most 0, float32 or float64.
        teacher_E: the same of the teacher.
        temperature: τ, at least 1 is usual.

    Returns:
        [E], at least 0, in nats; 0 with gradient 0 where both agree.

    """
    p_E = teacher_E.to(student_E.dtype).clamp_max(CERTAIN) / temperature
    q_E = student_E.clamp_max(CERTAIN) / temperature
    other_p_E, other_q_E = _log1mexp(p_E), _log1mexp(q_E)
    return temperature * (p_E.exp() * (p_E - q_E) - p_E.expm1() * (other_p_E - other_q_E))


def _log1mexp(values: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation. Source: Mächler 2012, vignette of R's package Rmpfr."""
    near = values > -math.log(2)
    # Each branch sees only what it can differentiate, since 0 · inf of the other one would be NaN.
    small = torch.log(-torch.expm1(torch.where(near, values, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, values)))
    return torch.where(near, small, large)


def matched_head(
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    actual_ids_R: torch.Tensor,
    ends_R: torch.Tensor,
    teacher_E: torch.Tensor,
    temperature: float,
    vocabulary_size: int,
    measure_gradients: bool = False,
    softcap: float | None = None,
    row_weights_R: torch.Tensor | None = None,
) -> HeadSums:
    """Σ_chunks of `likelihood_matching`, with logits that exist a chunk of rows at a time.

    A chunk's value depends on several rows, and the chunked head takes rows by themselves. So there are two passes: one
    for the student's log-probabilities s_r, from which value and ∂value/∂s_r follow, and one that takes the gradient of
    Σ_r ∂value/∂s_r · s_r, which is the same and is a sum over rows.

    Args:
        hidden_RD: see `chunked_head`.
        weight_VD: see `chunked_head`.
        actual_ids_R: int64 [R]: the tokens that follow.
        ends_R: bool [R]: a chunk ends with this row; True of the last one.
        teacher_E: the teacher's log-probability of each chunk; NaN takes no part.
        temperature: see `likelihood_matching`.
        vocabulary_size: see `chunked_head`.
        measure_gradients: see `chunked_head`.
        softcap: see `chunked_head`.
        row_weights_R: factors of the records' values; a chunk has that of its last row.

    Returns:
        one value.

    """
    logprobs_R = token_logprobs(hidden_RD, weight_VD[:vocabulary_size], actual_ids_R, softcap).requires_grad_()
    with torch.enable_grad():
        chunk_R = ends_R.cumsum(0) - ends_R.long()
        student_E = logprobs_R.new_zeros(len(teacher_E)).index_add(0, chunk_R, logprobs_R)
        known_E = ~teacher_E.isnan()
        values_E = likelihood_matching(student_E[known_E], teacher_E[known_E], temperature)
        if row_weights_R is not None:
            values_E = values_E * row_weights_R[ends_R][known_E]
        value = values_E.sum()
        slopes_R = torch.autograd.grad(value, logprobs_R)[0]
    nothing_R0 = actual_ids_R.new_zeros(len(actual_ids_R), 0)
    targets = WeightedTargets(
        actual_ids_R=actual_ids_R, ids_RK=nothing_R0, weights_RK=nothing_R0.float(), row_weights_R=-slopes_R
    )
    term = Term("likelihood_matching", 1.0, lambda rows: token_ce(rows.student()))
    sums = chunked_head(hidden_RD, weight_VD, targets, [term], vocabulary_size, measure_gradients, softcap=softcap)
    value = value.detach()
    return HeadSums(sums.total + (value - sums.total.detach()), value.unsqueeze(0), sums.squared_gradients)


@torch.no_grad()
def token_logprobs(
    hidden_RD: torch.Tensor, weight_VD: torch.Tensor, actual_ids_R: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    """Log q(actual token) [R], float32 or float64, without a graph; arguments as of `matched_head`."""
    nothing_R0 = actual_ids_R.new_zeros(len(actual_ids_R), 0)
    targets = WeightedTargets(actual_ids_R=actual_ids_R, ids_RK=nothing_R0, weights_RK=nothing_R0.float())
    step = max(CHUNK_BYTES.get(weight_VD.device.type, CHUNK_BYTES["cuda"]) // (4 * len(weight_VD)), 1)
    parts = []
    for start in range(0, len(hidden_RD), step):
        rows = slice(start, start + step)
        logits_RV = softcapped(hidden_RD[rows] @ weight_VD.T, softcap)
        parts.append(-token_ce(Rows(logits_RV, targets.rows(start, start + step)).student()))
    return torch.cat(parts)
