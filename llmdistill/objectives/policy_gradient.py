"""The reverse KL on text that the student drew, as a policy gradient: needs only p of the actual token."""

from __future__ import annotations

import torch


def policy_gradient(
    teacher_R: torch.Tensor, student_R: torch.Tensor, later_R: torch.Tensor | None = None
) -> torch.Tensor:
    """The value log q(y) - log p(y), with the gradient -A·∇log q(y), A = log p(y) - log q(y) + later_R held constant.

    Over tokens y that the student drew at temperature 1, the value averages to KL(q ‖ p) and the gradient to that of
    KL(q ‖ p) (REINFORCE with the reward log p - log q); the gradient is not the derivative of this row's value. With
    `later_R` of discount 1 it averages to the gradient of the KL of whole responses, prefixes that come about
    included. A single value may be negative.

    Source: MiniLLM, arXiv 2306.08543, equation 2; with the immediate advantage alone Thinking Machines Lab 2025,
    "On-Policy Distillation".

    Args:
        teacher_R: log p of the actual token, at temperature 1.
        student_R: log q of the actual token, at temperature 1.
        later_R: of `later_advantages`; None is 0.

    Returns:
        [R], in nats.

    """
    fixed_R = student_R.detach()
    advantage_R = teacher_R - fixed_R if later_R is None else teacher_R - fixed_R + later_R
    return fixed_R - teacher_R + advantage_R * (fixed_R - student_R)


def later_advantages(advantages_R: torch.Tensor, records_R: torch.Tensor, discount: float) -> torch.Tensor:
    """Σ_{j ≥ 1} discount^j · advantage of the j-th row after this one in its record.

    Args:
        advantages_R: log p - log q of the actual tokens, without a graph.
        records_R: number of each row's record; the rows of a record stand together, in order.
        discount: 0 … 1.

    Returns:
        [R].

    """
    sums_R, reach = advantages_R, 1
    # The sum over a row and the `reach - 1` rows after it doubles its reach until it covers all rows.
    while reach < len(sums_R):
        same_R = records_R[:-reach] == records_R[reach:]
        further_R = torch.where(same_R, discount**reach * sums_R[reach:], 0)
        sums_R = torch.cat([sums_R[:-reach] + further_R, sums_R[-reach:]])
        reach *= 2
    return sums_R - advantages_R
