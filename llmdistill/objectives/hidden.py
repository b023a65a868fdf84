"""Hidden states of mapped layers: a value per row, reduced elsewhere.

The rows are those that count (real tokens, or supervised ones), picked by the caller: padding and packing never enter.
"""

from __future__ import annotations

import torch


def hidden_mse(student_RD: torch.Tensor, teacher_RD: torch.Tensor) -> torch.Tensor:
    """Mean over the width of the squared differences. Source: TinyBERT, arXiv 1909.10351, equation 8.

    Args:
        student_RD: [R, D], projected to the teacher's width where widths differ.
        teacher_RD: [R, D].

    Returns:
        [R], float32 or float64.

    Raises:
        ValueError: the shapes differ.

    """
    student_RD, teacher_RD = _alike(student_RD, teacher_RD)
    return (student_RD - teacher_RD).square().mean(dim=1)


def hidden_cosine(student_RD: torch.Tensor, teacher_RD: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the angle between the two states, 0 … 2. Source: DistilBERT, arXiv 1910.01108, section 2.

    Args:
        student_RD: [R, D], projected to the teacher's width where widths differ.
        teacher_RD: [R, D].

    Returns:
        [R], float32 or float64; 1 where a state is 0.

    Raises:
        ValueError: the shapes differ.

    """
    student_RD, teacher_RD = _alike(student_RD, teacher_RD)
    return 1 - torch.nn.functional.cosine_similarity(student_RD, teacher_RD, dim=1)


def _alike(student_RD: torch.Tensor, teacher_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if student_RD.shape != teacher_RD.shape:
        raise ValueError(
            f"the student's states are {tuple(student_RD.shape)} and the teacher's {tuple(teacher_RD.shape)}; equal"
            " rows and widths are needed, so project the student's (llmdistill.student.projectors)"
        )
    dtype = torch.promote_types(student_RD.dtype, torch.float32)
    return student_RD.to(dtype), teacher_RD.detach().to(dtype)
