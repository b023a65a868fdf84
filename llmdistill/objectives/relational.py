"""Geometry of token representations: distances and angles within a record, a value per token, reduced elsewhere.

Widths may differ. Costs R² · D for distances and R³ for angles: pick some tens of tokens.

Source: Relational Knowledge Distillation, arXiv 1904.05068.
"""

from __future__ import annotations

import torch
from torch.nn.functional import huber_loss, normalize


def relational_distance(student_RD: torch.Tensor, teacher_RD: torch.Tensor, segments_R: torch.Tensor) -> torch.Tensor:
    """Huber difference of the distances to the other tokens of the record, in units of the record's mean distance.

    Args:
        student_RD: [R, D of the student].
        teacher_RD: [R, D of the teacher].
        segments_R: int64 [R], number of the record.

    Returns:
        [R], float32 or float64: mean over the other tokens; 0 for a token that is alone in its record.

    """
    pairs_RR = (segments_R.unsqueeze(1) == segments_R.unsqueeze(0)).fill_diagonal_(False)
    student_RR, teacher_RR = _distances(student_RD, pairs_RR), _distances(teacher_RD.detach(), pairs_RR)
    return _mean(huber_loss(student_RR, teacher_RR.to(student_RR.dtype), reduction="none"), pairs_RR, (1,))


def relational_angle(student_RD: torch.Tensor, teacher_RD: torch.Tensor, segments_R: torch.Tensor) -> torch.Tensor:
    """Huber difference of the cosines of the angles at a token between any two others of its record.

    Args:
        student_RD: [R, D of the student].
        teacher_RD: [R, D of the teacher].
        segments_R: int64 [R], number of the record.

    Returns:
        [R], float32 or float64: mean over the ordered pairs of two different others; 0 where there are none.

    """
    pairs_RR = (segments_R.unsqueeze(1) == segments_R.unsqueeze(0)).fill_diagonal_(False)
    triples_RRR = (pairs_RR.unsqueeze(2) & pairs_RR.unsqueeze(1)).clone()
    triples_RRR.diagonal(dim1=1, dim2=2).fill_(False)
    student_RRR, teacher_RRR = _cosines(student_RD), _cosines(teacher_RD.detach())
    return _mean(huber_loss(student_RRR, teacher_RRR.to(student_RRR.dtype), reduction="none"), triples_RRR, (1, 2))


def _distances(vectors_RD: torch.Tensor, pairs_RR: torch.Tensor) -> torch.Tensor:
    vectors_RD = vectors_RD.to(torch.promote_types(vectors_RD.dtype, torch.float32))
    squares_RR = (vectors_RD.unsqueeze(1) - vectors_RD.unsqueeze(0)).square().sum(dim=2)
    # The root has no gradient at 0: equal vectors count as distance 0 without one.
    apart_RR = pairs_RR & (squares_RR > 0)
    distances_RR = torch.where(apart_RR, torch.where(apart_RR, squares_RR, 1).sqrt(), 0)
    # One mean per record: what else is packed beside it must not matter.
    record_RR = pairs_RR.to(distances_RR.dtype).fill_diagonal_(1.0)
    means_R = (record_RR @ distances_RR.sum(dim=1)) / (record_RR @ pairs_RR.sum(dim=1).to(record_RR.dtype)).clamp_min(1)
    return distances_RR / torch.where(means_R > 0, means_R, 1).unsqueeze(1)


def _cosines(vectors_RD: torch.Tensor) -> torch.Tensor:
    """[vertex, one end, other end]."""
    vectors_RD = vectors_RD.to(torch.promote_types(vectors_RD.dtype, torch.float32))
    edges_RRD = normalize(vectors_RD.unsqueeze(0) - vectors_RD.unsqueeze(1), dim=2)
    return edges_RRD @ edges_RRD.transpose(1, 2)


def _mean(values: torch.Tensor, counted: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return (values * counted).sum(dim=dims) / counted.sum(dim=dims).clamp_min(1)
