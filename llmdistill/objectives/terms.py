"""From the configuration to the terms of the total: the only place that knows both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from llmdistill.config.objectives import (
    AdaptiveKLConfig,
    AlphaBetaConfig,
    AnyObjective,
    ForwardKLConfig,
    HardCEConfig,
    JSDConfig,
    LogitObjective,
    PolicyGradientConfig,
    ReverseKLConfig,
    SequenceCEConfig,
    SkewForwardKLConfig,
    SkewReverseKLConfig,
    TAIDConfig,
    ZLossConfig,
)
from llmdistill.config.weighting import ObjectiveConfig, ScheduleConfig
from llmdistill.objectives.adaptive import adaptive_kl, taid
from llmdistill.objectives.cross_entropy import token_ce, weighted_forward_kl, z_loss
from llmdistill.objectives.divergence import (
    alpha_beta,
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from llmdistill.objectives.policy_gradient import policy_gradient
from llmdistill.objectives.rows import Rows
from llmdistill.objectives.schedule import Schedule
from llmdistill.objectives.support import Tail, floored, on_student_top_k
from llmdistill.objectives.targets import DenseTargets, TopKTargets, WeightedTargets

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Term:
    """One objective of the total, all its numbers fixed."""

    name: str
    """The objective's name."""
    weight: float
    """Factor in the total."""
    values: Callable[[Rows], torch.Tensor]
    """A value per row [R], float32 or better, without weight and without T²."""
    temperature: float = 1.0
    """T of the softmaxes; the reduction multiplies by T²."""
    text: Literal["all", "teacher", "student"] = "all"
    """Whose text it looks at; the reduction sets the values of other rows to 0."""


def make_terms(
    objectives: Sequence[AnyObjective], progress: float = 1.0, factors: Mapping[str, float] | None = None
) -> list[Term]:
    """The terms of the objectives on logits, at a point of the training.

    Args:
        objectives: as configured; those on inner states are left out.
        progress: 0 at the first step, 1 at the last.
        factors: objective name → factor of its weight, where objectives are balanced.

    """
    chosen = [objective for objective in objectives if isinstance(objective, LogitObjective)]
    terms = [_term(objective, progress) for objective in chosen]
    return [replace(term, weight=term.weight * (factors or {}).get(term.name, 1.0)) for term in terms]


def weight_at(objective: ObjectiveConfig, progress: float) -> float:
    """The weight of an objective at a point of the training."""
    return objective.weight * _factor(objective.schedule, progress)


def _factor(schedule: ScheduleConfig | None, progress: float) -> float:
    if schedule is None:
        return 1.0
    return Schedule(schedule.start, schedule.end, schedule.shape, schedule.until).at(progress)


def _term(objective: LogitObjective, progress: float) -> Term:
    weight = weight_at(objective, progress)
    if isinstance(objective, (HardCEConfig, SequenceCEConfig, ZLossConfig)):
        return Term(objective.name, weight, _TOKEN_VALUES[objective.type], text=objective.text)
    if isinstance(objective, PolicyGradientConfig):
        values = partial(policy_gradient_values, discount=objective.discount)
        return Term(objective.name, weight, values, text=objective.text)
    temperature = objective.temperature * _factor(objective.temperature_schedule, progress)
    if isinstance(objective, ForwardKLConfig):
        values = partial(forward_kl_values, temperature=temperature, tail=objective.tail)
        return Term(objective.name, weight, values, temperature, objective.text)
    if isinstance(objective, ReverseKLConfig) and objective.support == "student":
        values = partial(student_top_k_values, temperature=temperature, k=objective.student_top_k)
        return Term(objective.name, weight, values, temperature, objective.text)
    divergence = _divergence(objective, progress)
    values = partial(divergence_values, divergence=divergence, temperature=temperature, tail=objective.tail)
    return Term(objective.name, weight, values, temperature, objective.text)


def _divergence(objective: LogitObjective, progress: float) -> Divergence:
    match objective:
        case JSDConfig():
            return partial(jsd, beta=objective.beta)
        case SkewForwardKLConfig():
            return partial(skew_forward_kl, alpha=objective.alpha)
        case SkewReverseKLConfig():
            return partial(skew_reverse_kl, alpha=objective.alpha)
        case AdaptiveKLConfig():
            return partial(adaptive_kl, head_mass=objective.head_mass)
        case AlphaBetaConfig():
            return partial(alpha_beta, alpha=objective.alpha, beta=objective.beta)
        case TAIDConfig():
            return partial(taid, share=Schedule(objective.start, 1.0, "linear", objective.until).at(progress))
    return {"reverse_kl": reverse_kl, "total_variation": total_variation}[objective.type]


def divergence_values(rows: Rows, divergence: Divergence, temperature: float, tail: Tail) -> torch.Tensor:
    """A divergence per row [R], on the support that targets and policy give."""
    support = rows.support(temperature, tail)
    return divergence(support.teacher_RE, support.student_RE)


def student_top_k_values(rows: Rows, temperature: float, k: int) -> torch.Tensor:
    """KL(q ‖ p) per row [R] over the student's own top k and one outcome for all others; needs dense targets."""
    assert isinstance(rows.targets, DenseTargets), "p of the student's ids is known of a live teacher only"
    support = on_student_top_k(rows.support(temperature, "bucket"), k)
    return reverse_kl(support.teacher_RE, support.student_RE)


def forward_kl_values(
    rows: Rows, temperature: float = 1.0, tail: Tail | Literal["ground_truth"] = "bucket"
) -> torch.Tensor:
    """KL(p ‖ q) per row [R]; the one divergence that is linear in what is sampled of p, hence two more ways to it.

    Weighted targets give it without bias and without a policy. So does `ground_truth` on top-k targets: the kept
    entries as they are, and the actual token with weight 1 where it is not among them. Over tokens drawn from p that
    adds Σ_{v not kept} p_v·log(p_v/q_v), the part that is missing.
    """
    targets = rows.targets
    if isinstance(targets, WeightedTargets):
        assert temperature == 1.0, "weights are probabilities at temperature 1"
        return weighted_forward_kl(rows.student(), targets)
    if tail != "ground_truth":
        return divergence_values(rows, forward_kl, temperature, tail)
    assert isinstance(targets, TopKTargets), "dense targets have no tail"
    assert temperature == 1.0, "the actual token was drawn at temperature 1"
    kept_R = divergence_values(rows, forward_kl, 1.0, "none")
    outside_R = ~_among(targets)
    return kept_R + outside_R * (rows.teacher_actual() + token_ce(rows.student()))


def policy_gradient_values(rows: Rows, discount: float = 0.0) -> torch.Tensor:
    """See `policy_gradient`; a discount above 0 needs `Targets.later_advantages`."""
    later_R = rows.targets.later_advantages[discount] if discount else None
    return policy_gradient(rows.teacher_actual(), floored(rows.student().actual_R), later_R)


def _among(targets: TopKTargets) -> torch.Tensor:
    """Bool [R]: the actual token is one of the kept ids."""
    equal_RK = targets.ids_RK == targets.actual_ids_R.unsqueeze(1)
    return (equal_RK if targets.valid_RK is None else equal_RK & targets.valid_RK).any(dim=1)


_TOKEN_VALUES: dict[str, Callable[[Rows], torch.Tensor]] = {
    "hard_ce": lambda rows: token_ce(rows.student()),
    "sequence_ce": lambda rows: token_ce(rows.student()),
    "z_loss": lambda rows: z_loss(rows.student()),
}
