"""Several teachers as one: their distributions mixed, Σ share · p.

The forward KL to a mixture differs from the weighted sum of the forward KLs to its members by a constant: with top-k
targets, whose ids differ, that sum does the same. Source: Hinton et al. 2015,
arXiv 1503.02531, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llmdistill.objectives.targets import DenseTargets, WeightedTargets


def mix_dense(teachers: Sequence[DenseTargets], shares: Sequence[float]) -> DenseTargets:
    """The mixture's log-probabilities, as logits; at temperature 1.

    Args:
        teachers: of the same rows, over the same vocabulary.
        shares: above 0, one a teacher; scaled to sum to 1.

    """
    dtype = torch.promote_types(teachers[0].logits_RV.dtype, torch.float32)
    parts = [
        teacher.logits_RV.to(dtype).log_softmax(dim=1) + math.log(share)
        for teacher, share in zip(teachers, _scaled(shares), strict=True)
    ]
    mixed_RV = torch.stack(parts).logsumexp(dim=0)
    return DenseTargets(
        actual_ids_R=teachers[0].actual_ids_R,
        row_weights_R=teachers[0].row_weights_R,
        student_rows_R=teachers[0].student_rows_R,
        logits_RV=mixed_RV,
    )


def mix_weighted(teachers: Sequence[WeightedTargets], shares: Sequence[float]) -> WeightedTargets:
    """All entries side by side, each teacher's weights times its share: right on average, since each teacher's are.

    The entropy of a mixture is not known from those of its members, so the objective becomes the cross-entropy.

    Args:
        teachers: of the same rows.
        shares: above 0, one a teacher; scaled to sum to 1.

    """
    weights = [teacher.weights_RK * share for teacher, share in zip(teachers, _scaled(shares), strict=True)]
    return WeightedTargets(
        actual_ids_R=teachers[0].actual_ids_R,
        row_weights_R=teachers[0].row_weights_R,
        student_rows_R=teachers[0].student_rows_R,
        ids_RK=torch.cat([teacher.ids_RK for teacher in teachers], dim=1),
        weights_RK=torch.cat(weights, dim=1),
    )


def _scaled(shares: Sequence[float]) -> list[float]:
    assert min(shares) > 0
    return [share / sum(shares) for share in shares]
