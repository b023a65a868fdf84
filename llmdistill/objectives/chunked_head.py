"""The language-model head and the objectives, some rows at a time.

Logits of all rows at once would be the largest tensor of a training step (4,096 rows × 151,936 ids × 4 bytes = 2.5 GB).
Here a chunk's logits are made, its objectives and their gradients are computed at once, and the logits are dropped; the
backward pass only scales the gradients that are already there. That works because the total is a linear function of
values per row: each chunk's gradient depends on nothing outside the chunk.

Two sizes: a *chunk* is what the float32 arithmetic sees at once (small, to stay in a CPU's cache), and a *group* of
chunks shares one matrix product for the head's gradient (large, since adding up a gradient as big as the head costs as
much as the product itself).
"""

from __future__ import annotations

from typing import Any

import torch

from llmdistill.objectives.targets import TeacherTargets
from llmdistill.objectives.total import row_sums

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
"""Size of a chunk's float32 logits, by type of device."""

GROUP_BYTES = 256 * 2**20
"""Size of a group's logit gradients, in the precision of the head."""


def chunked_row_sums(
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets: TeacherTargets,
    weights: dict[str, float],
    chunk_rows: int | None = None,
    group_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_rows of the weighted objectives, and of each one by itself.

    Args:
        hidden_RD: final hidden states (after the last norm) of the supervised rows.
        weight_VD: weight of the head; only the real vocabulary's rows of it.
        targets: the teacher's side of the same rows.
        weights: objective name → weight.
        chunk_rows: rows whose float32 logits exist at one time; by default what `CHUNK_BYTES` holds.
        group_rows: rows whose logit gradients exist at one time; by default what `GROUP_BYTES` holds.

    Returns:
        a differentiable scalar Σ_objective weight · Σ_rows value, and the detached Σ_rows value [len(weights)].

    """
    vocabulary_size = len(weight_VD)
    chunk_bytes = CHUNK_BYTES.get(weight_VD.device.type, CHUNK_BYTES["cuda"])
    chunk_rows = chunk_rows or max(chunk_bytes // (4 * vocabulary_size), 1)
    group_rows = group_rows or max(GROUP_BYTES // (weight_VD.element_size() * vocabulary_size), 1)
    return _ChunkedHead.apply(hidden_RD, weight_VD, targets, weights, chunk_rows, group_rows)  # type: ignore[no-any-return]


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets: TeacherTargets,
        weights: dict[str, float],
        chunk_rows: int,
        group_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        accumulate = torch.promote_types(weight_VD.dtype, torch.float32)
        factors = torch.tensor(list(weights.values()), dtype=accumulate, device=hidden_RD.device)
        sums = torch.zeros_like(factors)
        if not any(ctx.needs_input_grad[:2]):
            for start in range(0, len(hidden_RD), chunk_rows):
                logits_RV = hidden_RD[start : start + chunk_rows] @ weight_VD.T
                sums += row_sums(logits_RV, targets.rows(start, start + chunk_rows), list(weights))
            return (sums * factors).sum(), sums
        grad_hidden_RD = torch.empty_like(hidden_RD)
        grad_weight_VD: torch.Tensor | None = None
        for first in range(0, len(hidden_RD), group_rows):
            group = slice(first, min(first + group_rows, len(hidden_RD)))
            grad_logits_RV, group_sums = _logit_gradients(
                hidden_RD[group], weight_VD, targets.rows(group.start, group.stop), weights, factors, chunk_rows
            )
            sums += group_sums
            grad_hidden_RD[group] = grad_logits_RV @ weight_VD
            grad_group_VD = grad_logits_RV.T @ hidden_RD[group]
            # Several groups are summed in float32; one alone needs no copy.
            grad_weight_VD = grad_group_VD if grad_weight_VD is None else grad_weight_VD.to(accumulate) + grad_group_VD
        assert grad_weight_VD is not None, "the caller handles the case of no supervised row"
        ctx.save_for_backward(grad_hidden_RD, grad_weight_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(sums)
        return (sums * factors).sum(), sums

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden_RD, grad_weight_VD = ctx.saved_tensors
        return grad_total * grad_hidden_RD, grad_total * grad_weight_VD, None, None, None, None


def _logit_gradients(
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets: TeacherTargets,
    weights: dict[str, float],
    factors: torch.Tensor,
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the weighted total by the logits [R, V], in the head's precision, and Σ_rows of each objective."""
    grad_logits_RV = weight_VD.new_empty(len(hidden_RD), len(weight_VD))
    sums = torch.zeros_like(factors)
    for start in range(0, len(hidden_RD), chunk_rows):
        stop = min(start + chunk_rows, len(hidden_RD))
        with torch.enable_grad():
            logits_RV = (hidden_RD[start:stop].detach() @ weight_VD.detach().T).requires_grad_()
            chunk_sums = row_sums(logits_RV, targets.rows(start, stop), list(weights))
            chunk_total = (chunk_sums * factors).sum()
        sums += chunk_sums.detach()
        (grad_logits_RV[start:stop],) = torch.autograd.grad(chunk_total, logits_RV)
    return grad_logits_RV, sums
