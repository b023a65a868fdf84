"""From the student's width to the teacher's, for objectives on hidden states. Trained along, and never exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llmdistill.objectives.layer_map import LayerPair


class Projectors(nn.Module):
    """One map per pair of layers: linear without bias where the widths differ, the identity where they are equal.

    Source: TinyBERT, arXiv 1909.10351, equation 8; FitNets, arXiv 1412.6550.

    Args:
        pairs: the layer map.
        student_width: D of the student.
        teacher_width: D of the teacher.

    """

    def __init__(self, pairs: Sequence[LayerPair], student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({_name(pair): _projector(student_width, teacher_width) for pair in pairs})

    def forward(self, hidden_RD: torch.Tensor, pair: LayerPair) -> torch.Tensor:
        """The student's states [R, student width] of a pair, at the teacher's width."""
        projected: torch.Tensor = self.maps[_name(pair)](hidden_RD)
        return projected


def _name(pair: LayerPair) -> str:
    return f"{pair.student}_{pair.teacher}"


def _projector(student_width: int, teacher_width: int) -> nn.Module:
    if student_width == teacher_width:
        return nn.Identity()
    linear = nn.Linear(student_width, teacher_width, bias=False)
    # Orthogonal columns keep lengths and angles, so that training starts from the student's own geometry.
    nn.init.orthogonal_(linear.weight)
    return linear
