"""The language-model head and the objectives, some rows at a time.

Logits of all rows at once would be the largest tensor of a training step (4,096 rows × 151,936 ids × 4 bytes = 2.5 GB).
Here a chunk's logits are made, its objectives and their gradients are computed at once, and the logits are dropped; the
backward pass only scales the gradients that are already there. That works because the total is a linear function of
values per row: each chunk's gradient depends on nothing outside the chunk.

Two sizes: a *group* of rows shares its matrix products (large, because each of them reads or writes the whole head),
and a *chunk* of a group is what the float32 arithmetic sees at once (small, to stay in a CPU's cache). The gradients
by a group's logits are written over these.

The readable form of the same is `row_sums(hidden_RD @ weight_VD.T, …)` in `total.py`; tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmdistill.objectives.rows import Rows
from llmdistill.objectives.targets import TeacherTargets, softcapped
from llmdistill.objectives.terms import Term
from llmdistill.objectives.total import row_sums

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Size of a chunk's float32 logits, by type of device."""

GROUP_BYTES = 256 * 2**20
"""Size of a group's logits, in the precision of the head."""


@dataclass(frozen=True)
class HeadSums:
    """What the head gives back; everything but `total` is without a graph. All of it adds up over calls and ranks."""

    total: torch.Tensor
    """Scalar, differentiable: Σ_term weight · Σ_rows value."""
    values: torch.Tensor
    """[len(terms)]: Σ_rows value, unweighted."""
    squared_gradients: torch.Tensor | None
    """[len(terms)]: squared norm of the gradient of each term's Σ_rows value by the logits, where asked for. Rows own
    their logits, so squares add up over rows like the values do."""


@dataclass(frozen=True)
class _Plan:
    """What one pass needs besides tensors."""

    targets: TeacherTargets
    terms: tuple[Term, ...]
    vocabulary_size: int
    chunk_rows: int
    group_rows: int
    measure: bool
    softcap: float | None


def chunked_head(
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets: TeacherTargets,
    terms: Sequence[Term],
    vocabulary_size: int | None = None,
    measure_gradients: bool = False,
    chunk_rows: int | None = None,
    group_rows: int | None = None,
    softcap: float | None = None,
) -> HeadSums:
    """Σ_rows of the weighted objectives, and of each one by itself.

    Args:
        hidden_RD: final hidden states (after the last norm) of the supervised rows; R = 0 gives zeros that still reach
            both inputs, with gradient 0.
        weight_VD: weight of the head; tied or not, whole (under ZeRO-3 the caller gathers it).
        targets: the teacher's side of the same rows.
        terms: the objectives.
        vocabulary_size: the real vocabulary; the head's rows beyond it take no part and get gradient 0. None: all.
        measure_gradients: fill `HeadSums.squared_gradients`; costs one more pass over the logits per term.
        chunk_rows: rows whose float32 logits exist at one time; by default what `CHUNK_BYTES` holds.
        group_rows: rows whose logits exist at one time in the head's precision; by default what `GROUP_BYTES` holds.
        softcap: of the student's logits, see `softcapped`.

    """
    plan = _plan(weight_VD, targets, terms, vocabulary_size, measure_gradients, chunk_rows, group_rows, softcap)
    total, values, squares = _ChunkedHead.apply(hidden_RD, weight_VD, plan)
    return HeadSums(total, values, squares if measure_gradients else None)


@torch.no_grad()
def chunked_values(
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets: TeacherTargets,
    values: Callable[[Rows], torch.Tensor],
    vocabulary_size: int | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """A value per row [R], at least one, without a graph and without weights; arguments as of `chunked_head`."""
    plan = _plan(weight_VD, targets, (), vocabulary_size, chunk_rows=chunk_rows, softcap=softcap)
    chunks = _chunks(hidden_RD, weight_VD[: plan.vocabulary_size], plan)
    return torch.cat([values(Rows(chunk_RV, part)) for chunk_RV, part in chunks])


def _plan(
    weight_VD: torch.Tensor,
    targets: TeacherTargets,
    terms: Sequence[Term],
    vocabulary_size: int | None,
    measure: bool = False,
    chunk_rows: int | None = None,
    group_rows: int | None = None,
    softcap: float | None = None,
) -> _Plan:
    vocabulary_size = len(weight_VD) if vocabulary_size is None else vocabulary_size
    chunk_bytes = CHUNK_BYTES.get(weight_VD.device.type, CHUNK_BYTES["cuda"])
    return _Plan(
        targets,
        tuple(terms),
        vocabulary_size,
        chunk_rows or max(chunk_bytes // (4 * vocabulary_size), 1),
        group_rows or max(GROUP_BYTES // (weight_VD.element_size() * vocabulary_size), 1),
        measure,
        softcap,
    )


def _chunks(
    hidden_RD: torch.Tensor, weight_VD: torch.Tensor, plan: _Plan
) -> Iterator[tuple[torch.Tensor, TeacherTargets]]:
    """The logits of a chunk of rows after the other, with their targets."""
    for first in range(0, len(hidden_RD), plan.group_rows):
        logits_RV = hidden_RD[first : first + plan.group_rows] @ weight_VD.T
        for start in range(0, len(logits_RV), plan.chunk_rows):
            stop = min(start + plan.chunk_rows, len(logits_RV))
            yield softcapped(logits_RV[start:stop], plan.softcap), plan.targets.rows(first + start, first + stop)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: torch.Tensor, padded_VD: torch.Tensor, plan: _Plan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight_VD = padded_VD[: plan.vocabulary_size]
        accumulate = torch.promote_types(weight_VD.dtype, torch.float32)
        factors = torch.tensor([term.weight for term in plan.terms], dtype=accumulate, device=hidden_RD.device)
        sums = factors.new_zeros(2, len(factors))
        if not any(ctx.needs_input_grad[:2]) and not plan.measure:
            for chunk_RV, targets in _chunks(hidden_RD, weight_VD, plan):
                sums[0] += row_sums(chunk_RV, targets, plan.terms)
            return (sums[0] * factors).sum(), sums[0], sums[1]
        grad_hidden_RD = torch.empty_like(hidden_RD)
        grad_padded_VD = torch.zeros_like(padded_VD) if ctx.needs_input_grad[1] else None
        for first in range(0, len(hidden_RD), plan.group_rows):
            group = slice(first, min(first + plan.group_rows, len(hidden_RD)))
            logits_RV = hidden_RD[group] @ weight_VD.T
            sums += _logits_to_gradients(logits_RV, plan, first, factors)
            torch.mm(logits_RV, weight_VD, out=grad_hidden_RD[group])
            if grad_padded_VD is not None:
                # The product is added in float32 and rounded once a group. A float32 sum would double the peak.
                grad_padded_VD[: plan.vocabulary_size].addmm_(logits_RV.T, hidden_RD[group])
            del logits_RV
        ctx.gradients = grad_hidden_RD, grad_padded_VD
        values, squares = sums[0], sums[1]
        ctx.mark_non_differentiable(values, squares)
        return (values * factors).sum(), values, squares

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Scaled in place, since a second tensor as large as the head would be the peak of a step.
        if ctx.gradients is None:
            raise RuntimeError("the chunked head can be differentiated once; call it again for a second backward pass")
        (grad_hidden_RD, grad_weight_VD), ctx.gradients = ctx.gradients, None
        return (
            grad_hidden_RD.mul_(grad_total),
            None if grad_weight_VD is None else grad_weight_VD.mul_(grad_total),
            None,
        )


def _logits_to_gradients(logits_RV: torch.Tensor, plan: _Plan, first: int, factors: torch.Tensor) -> torch.Tensor:
    """Write the gradient of the weighted total over the logits, and return the sums [2, len(terms)].

    Args:
        logits_RV: of the rows first … first + R - 1; holds the gradients afterwards.
        plan: targets and terms.
        first: number of the first row.
        factors: the weights.

    """
    sums = factors.new_zeros(2, len(factors))
    for start in range(0, len(logits_RV), plan.chunk_rows):
        stop = min(start + plan.chunk_rows, len(logits_RV))
        with torch.enable_grad():
            chunk_RV = logits_RV[start:stop].detach().requires_grad_()
            capped_RV = softcapped(chunk_RV, plan.softcap)
            chunk_sums = row_sums(capped_RV, plan.targets.rows(first + start, first + stop), plan.terms)
            chunk_total = (chunk_sums * factors).sum()
        sums[0] += chunk_sums.detach()
        if plan.measure:
            sums[1] += _squared_gradients(chunk_sums, chunk_RV)
        logits_RV[start:stop] = torch.autograd.grad(chunk_total, chunk_RV)[0]
    return sums


def _squared_gradients(chunk_sums: torch.Tensor, logits_RV: torch.Tensor) -> torch.Tensor:
    """Squared norm of each sum's gradient by the logits [len(chunk_sums)]."""
    one_hot = torch.eye(len(chunk_sums), dtype=chunk_sums.dtype, device=chunk_sums.device)
    gradients = [torch.autograd.grad(chunk_sums, logits_RV, one, retain_graph=True)[0] for one in one_hot]
    return torch.stack([gradient.to(chunk_sums.dtype).square().sum() for gradient in gradients])
