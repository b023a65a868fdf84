"""Teacher and student on one common support: where temperature and tail policy are applied.

Every divergence of this package is a function of two lists of log-probabilities over the same E outcomes. With dense
targets the outcomes are the vocabulary. With k ids stored they depend on the policy:

bucket        the k ids, and one outcome for everything else. Merging outcomes cannot raise an f-divergence (the
              data-processing inequality), so the value is never above the one over the full vocabulary, never negative,
              and zero with zero gradient when the two agree. Source: Cover and Thomas, section 2.8.
renormalize   the k ids, each side rescaled to sum to 1 over them: says nothing about the tail.
none          the k ids as they are; the sums fall short of 1, so a "divergence" may be negative. For comparison only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from llmdistill.errors import ConfigError
from llmdistill.objectives.student_logprobs import StudentLogprobs
from llmdistill.objectives.targets import DenseTargets, TopKTargets

Tail = Literal["bucket", "renormalize", "none"]

LOG_FLOOR = -1e4
"""Stands for log 0. exp(-1e4) is 0 in float64 too, so sums do not change, products stay finite (0 · -1e4 instead of
0 · -inf = NaN), and a student that gives 0 to what the teacher expects shows a large finite value."""


@dataclass(frozen=True)
class Support:
    """Two distributions over the same outcomes."""

    teacher_RE: torch.Tensor
    """[R, E]: log p."""
    student_RE: torch.Tensor
    """[R, E]: log q."""


def common_support(
    student: StudentLogprobs, targets: TopKTargets | DenseTargets, temperature: float = 1.0, tail: Tail = "bucket"
) -> Support:
    """Lay teacher and student over the same outcomes.

    Args:
        student: at the same temperature.
        targets: for a temperature other than 1, top-k targets need `log_sum_exps[temperature]`.
        temperature: of both softmaxes.
        tail: the policy; dense targets have no tail and ignore it.

    Raises:
        ConfigError: the log-sum-exp at this temperature is not there.

    """
    dtype = student.kept_RK.dtype
    if isinstance(targets, DenseTargets):
        teacher_RV = (targets.logits_RV.to(dtype) / temperature).log_softmax(dim=1)
        return Support(floored(teacher_RV), floored(student.kept_RK))
    teacher_RK, mass_R = tempered_top_k(targets, temperature, dtype)
    student_RK = student.kept_RK
    if tail == "renormalize":
        teacher_RK, student_RK = teacher_RK.log_softmax(dim=1), floored(student_RK).log_softmax(dim=1)
    elif tail == "bucket":
        assert student.tail_R is not None
        # 1 - mass cannot be told from 0 below the rounding unit. Where nothing is outside, neither side has a bucket.
        smallest = torch.finfo(mass_R.dtype).eps / 2
        teacher_tail_R = torch.where(student.tail_R == -torch.inf, -torch.inf, (1 - mass_R).clamp_min(smallest).log())
        teacher_RK = torch.cat([teacher_RK, teacher_tail_R.unsqueeze(1)], dim=1)
        student_RK = torch.cat([student_RK, student.tail_R.unsqueeze(1)], dim=1)
    return Support(floored(teacher_RK), floored(student_RK))


def on_student_top_k(whole: Support, k: int) -> Support:
    """The student's k most likely outcomes, and one for all others on both sides.

    Merging outcomes cannot raise an f-divergence. Which ids are kept is constant in backward.

    Args:
        whole: over the whole vocabulary.
        k: at least 1; from the vocabulary on, nothing is merged.

    """
    if k >= whole.student_RE.shape[1]:
        return whole
    ids_RK = whole.student_RE.detach().topk(k, dim=1).indices

    def merged(logprobs_RV: torch.Tensor) -> torch.Tensor:
        # The others are summed by themselves: 1 - Σ kept would round.
        rest_R = logprobs_RV.scatter(1, ids_RK, -torch.inf).logsumexp(dim=1)
        return torch.cat([logprobs_RV.gather(1, ids_RK), rest_R.unsqueeze(1)], dim=1)

    return Support(floored(merged(whole.teacher_RE)), floored(merged(whole.student_RE)))


def tempered_top_k(targets: TopKTargets, temperature: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's kept log-probabilities [R, K] at a temperature, exact over the full vocabulary, and their mass [R].

    log p_τ(v) = logprob_v / τ - log Σ_u exp(logprob_u / τ).

    Raises:
        ConfigError: the log-sum-exp at this temperature is not there.

    """
    logprobs_RK, mass_R = targets.logprobs_RK.to(dtype), targets.mass_R.to(dtype)
    if temperature != 1.0:
        if temperature not in targets.log_sum_exps:
            raise ConfigError(
                f"the cache holds no log-sum-exp at temperature {temperature:g}, only at"
                f" {', '.join(f'{value:g}' for value in (1.0, *targets.log_sum_exps))}",
                where="objectives",
                fix="use one of these temperatures",
            )
        logprobs_RK = logprobs_RK / temperature - targets.log_sum_exps[temperature].to(dtype).unsqueeze(1)
    if targets.valid_RK is not None:
        logprobs_RK = logprobs_RK.masked_fill(~targets.valid_RK, -torch.inf)
    if temperature != 1.0:
        mass_R = logprobs_RK.exp().sum(dim=1)
    return logprobs_RK, mass_R


def floored(logprobs: torch.Tensor) -> torch.Tensor:
    """-inf becomes `LOG_FLOOR`, with gradient 0."""
    return logprobs.clamp_min(LOG_FLOOR)
