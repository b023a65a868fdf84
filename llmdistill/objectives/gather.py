"""One pass over the vocabulary: the logits at some ids, and the log-sum-exp of all the others.

Written by hand, because it is the inner loop of a training step: autograd's own chain (scatter, logsumexp, gather,
twice) reads and writes a [rows, vocabulary] tensor a dozen times; this needs five passes forward and one back.
"""

from __future__ import annotations

from typing import Any

import torch


def gather_and_rest(
    logits_RV: torch.Tensor, ids_RG: torch.Tensor, left_out: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the ids, and the log-sum-exp of the rest, of logits / temperature.

    Args:
        logits_RV: [R, V] any floating type; computed in float32 at least. -inf is allowed.
        ids_RG: int64 [R, G].
        left_out: the first so many columns of `ids_RG` are not part of the rest.
        temperature: above 0.

    Returns:
        logits / temperature at the ids [R, G], and log Σ exp(logits / temperature) over all other ids [R]; -inf where
        there are none. float32, or float64 for float64 logits. Both are differentiable once.

    """
    return _GatherAndRest.apply(logits_RV, ids_RG, left_out, temperature)  # type: ignore[no-any-return]


class _GatherAndRest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_RV: torch.Tensor, ids_RG: torch.Tensor, left_out: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gathered_RG = logits_RV.gather(1, ids_RG).to(torch.promote_types(logits_RV.dtype, torch.float32)) / temperature
        rest_RV = logits_RV.scatter(1, ids_RG[:, :left_out], -torch.inf) if left_out else logits_RV
        largest_R1 = rest_RV.amax(dim=1, keepdim=True).to(gathered_RG.dtype)
        # Where nothing is left the maximum is -inf, and -inf - (-inf) would be NaN.
        largest_R1 = torch.where(largest_R1 == -torch.inf, 0, largest_R1)
        exps_RV = rest_RV.to(gathered_RG.dtype, copy=rest_RV is logits_RV).sub_(largest_R1)
        if temperature != 1.0:
            exps_RV.div_(temperature)
        sums_R = exps_RV.exp_().sum(dim=1)
        ctx.save_for_backward(exps_RV, sums_R, ids_RG)
        ctx.temperature = temperature
        ctx.dtype = logits_RV.dtype
        return gathered_RG, sums_R.log() + largest_R1.squeeze(1) / temperature

    @staticmethod
    def backward(
        ctx: Any, grad_gathered_RG: torch.Tensor, grad_rest_R: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        exps_RV, sums_R, ids_RG = ctx.saved_tensors
        factor_R1 = torch.where(sums_R > 0, grad_rest_R / (sums_R * ctx.temperature), 0).unsqueeze(1)
        # The same id may stand in several columns (the actual token is often a kept one): add those up here, in full
        # precision, and round to the precision of the logits once.
        same_RGG = (ids_RG.unsqueeze(2) == ids_RG.unsqueeze(1)).to(grad_gathered_RG.dtype)
        at_ids_RG = torch.bmm(same_RGG, grad_gathered_RG.unsqueeze(2)).squeeze(2) / ctx.temperature
        at_ids_RG = at_ids_RG + exps_RV.gather(1, ids_RG) * factor_R1
        grad_RV = torch.empty_like(exps_RV, dtype=ctx.dtype)
        torch.mul(exps_RV, factor_R1, out=grad_RV)
        grad_RV.scatter_(1, ids_RG, at_ids_RG.to(ctx.dtype))
        return grad_RV, None, None, None
