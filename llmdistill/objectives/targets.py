"""The teacher's side of R supervised rows, in the four forms in which it comes.

TopKTargets       the k most likely ids and their log-probabilities (stored); the rest of the distribution is a tail
WeightedTargets   ids with weights whose expectation is the distribution (stored: `sampled`, `head_tail`)
DenseTargets      logits over the whole vocabulary (a live teacher)
HeadTargets       hidden states and a head that gives those logits, so that they too exist a chunk at a time
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What every form has."""

    actual_ids_R: torch.Tensor
    """int64 [R]: the token that really follows each row."""
    row_weights_R: torch.Tensor | None = None
    """[R]: factor of the row's value in every objective, from its record (a score, a filter, best of n); None is 1."""
    student_rows_R: torch.Tensor | None = None
    """bool [R]: the student wrote the row's record; None where nobody asks."""
    actual_logprobs_R: torch.Tensor | None = None
    """float [R]: the teacher's log-probability of the actual token, at temperature 1; not where there are logits."""
    later_advantages: Mapping[float, torch.Tensor] = field(default_factory=dict)
    """discount → float [R], see `policy_gradient.later_advantages`; for discounts above 0 that an objective uses."""

    def rows(self, start: int, stop: int) -> Self:
        """The rows start … stop - 1."""
        changed = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name.endswith(("_R", "_RK", "_RV", "_RD")) and value is not None:
                changed[item.name] = value[start:stop]
            elif isinstance(value, Mapping):
                changed[item.name] = {key: tensor[start:stop] for key, tensor in value.items()}
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class TopKTargets(Targets):
    """The k most likely tokens of each row."""

    ids_RK: torch.Tensor
    """int64 [R, K]: kept ids, all different among the valid ones of a row."""
    logprobs_RK: torch.Tensor
    """float [R, K]: their log-probabilities at temperature 1 over the full vocabulary."""
    mass_R: torch.Tensor
    """float [R]: the sum of the kept probabilities; what is missing to 1 is the tail."""
    log_sum_exps: Mapping[float, torch.Tensor] = field(default_factory=dict)
    """temperature τ → float [R]: log Σ_v exp(logprob_v / τ) over the full vocabulary. At τ = 1 it is 0, not stored."""
    valid_RK: torch.Tensor | None = None
    """bool [R, K]: which entries exist, where rows keep different numbers; entry 0 always does. None: all."""


@dataclass(frozen=True, kw_only=True)
class WeightedTargets(Targets):
    """Entries whose weights are right on average: E[Σ_k weight_k · f(id_k)] = Σ_v p_v · f(v) for every f.

    Random draws with replacement (count / N each), or an exact head with draws from the rest. The expectation is over
    the draws, at temperature 1. Source: Anshumann et al. 2025, arXiv 2503.16870.
    """

    ids_RK: torch.Tensor
    """int64 [R, K]; padding holds any id below V."""
    weights_RK: torch.Tensor
    """float [R, K]; padding has weight 0."""
    entropy_R: torch.Tensor | None = None
    """float [R]: entropy of the teacher's distribution in nats. It makes a divergence of the cross-entropy."""
    head_counts_R: torch.Tensor | None = None
    """int64 [R]: the first so many entries are exact, of the most likely ids (`head_tail`); at least 1."""

    def head(self) -> TopKTargets:
        """The exact head alone, everything else being its tail: for objectives that are not linear in p."""
        assert self.head_counts_R is not None, "only `head_tail` captures have an exact head"
        valid_RK = torch.arange(self.ids_RK.shape[1], device=self.ids_RK.device) < self.head_counts_R.unsqueeze(1)
        weights_RK = torch.where(valid_RK, self.weights_RK, 1)
        return TopKTargets(
            actual_ids_R=self.actual_ids_R,
            row_weights_R=self.row_weights_R,
            ids_RK=self.ids_RK,
            logprobs_RK=weights_RK.log(),
            mass_R=(self.weights_RK * valid_RK).sum(dim=1),
            valid_RK=valid_RK,
        )


@dataclass(frozen=True, kw_only=True)
class DenseTargets(Targets):
    """The teacher's logits over the student's vocabulary."""

    logits_RV: torch.Tensor
    """[R, V], any floating type, temperature 1."""


@dataclass(frozen=True, kw_only=True)
class HeadTargets(Targets):
    """The logits of a live teacher, not computed yet."""

    hidden_RD: torch.Tensor
    """[R, D]: the teacher's final hidden states, after its last norm."""
    head_weight: torch.Tensor
    """[V, D]: its head, cut to the real vocabulary."""
    softcap: float | None = None
    """See `softcapped`."""

    def dense(self) -> DenseTargets:
        """The logits of these rows, without a graph."""
        with torch.no_grad():
            logits_RV = softcapped(self.hidden_RD @ self.head_weight.T, self.softcap)
        return DenseTargets(
            actual_ids_R=self.actual_ids_R,
            row_weights_R=self.row_weights_R,
            student_rows_R=self.student_rows_R,
            later_advantages=self.later_advantages,
            logits_RV=logits_RV,
        )


TeacherTargets = TopKTargets | WeightedTargets | DenseTargets | HeadTargets


def softcapped(logits_RV: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """c·tanh(logits / c), or the logits as they are for None. Source: Gemma 2, arXiv 2408.00118, section 2."""
    return logits_RV if softcap is None else softcap * (logits_RV / softcap).tanh()
