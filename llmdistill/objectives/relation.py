"""Self-attention relations: how a layer's queries (or keys, or values) relate to each other, a value per token.

Only relations are compared, so student and teacher may differ in width and in heads.
"""

from __future__ import annotations

import torch


def relation(
    student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, segments_BT: torch.Tensor, rows_BT: torch.Tensor, heads: int
) -> torch.Tensor:
    """KL between the teacher's and the student's relations softmax(X Xᵀ / √d), mean over relation heads.

    X are the vectors of all attention heads side by side, cut anew into `heads` relation heads. The three objectives
    Q–Q, K–K and V–V are this function on the queries, the keys and the values.

    Source: MiniLMv2, arXiv 2012.15828, equations 4 to 6.

    Args:
        student_BTD: [B, T, D of the student].
        teacher_BTD: [B, T, D of the teacher].
        segments_BT: int64, number of the record that a token belongs to, below 0 for padding. Tokens relate to those of
            their own record only.
        rows_BT: bool, the tokens that count, of those with a segment; they relate to all.
        heads: relation heads; divides both widths.

    Returns:
        [R], float32 or float64, in nats.

    Raises:
        ValueError: `heads` does not divide a width.

    """
    student = _log_relations(student_BTD, segments_BT, heads)
    teacher = _log_relations(teacher_BTD.detach(), segments_BT, heads)
    values_BHT = (teacher.exp() * (teacher - student)).sum(dim=3)
    return values_BHT.mean(dim=1)[rows_BT]


def _log_relations(vectors_BTD: torch.Tensor, segments_BT: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = vectors_BTD.shape
    if width % heads:
        raise ValueError(
            f"{heads} relation heads do not divide a width of {width}; use a common divisor of both widths"
        )
    vectors_BTD = vectors_BTD.to(torch.promote_types(vectors_BTD.dtype, torch.float32))
    split_BHTd = vectors_BTD.reshape(batch, length, heads, width // heads).transpose(1, 2)
    scores_BHTT = split_BHTd @ split_BHTd.transpose(2, 3) / (width // heads) ** 0.5
    together_BTT = segments_BT.unsqueeze(2) == segments_BT.unsqueeze(1)
    # A finite stand-in for -inf: other records get probability 0, and 0 · (a - a) stays 0.
    relations_BHTT: torch.Tensor = scores_BHTT.masked_fill(~together_BTT.unsqueeze(1), -1e4).log_softmax(dim=3)
    return relations_BHTT
