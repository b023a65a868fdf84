"""Which items stay, given how important each is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmdistill.student.calibration import Importance
from llmdistill.student.cutting import Items, Widths
from llmdistill.student.families import Family
from llmdistill.student.shape import Shape


def choose_widths(
    importance: Importance, family: Family, kept: Sequence[int], shape: Shape, teacher: Shape, groups: int = 1
) -> Widths:
    """The most important items of each space, in their old order.

    Key-value heads are chosen by the sum over the query heads that share them, then query heads within each that stays:
    a group stays a group. Channels of the residual stream are the same in every layer.

    Args:
        importance: of the teacher's items.
        family: its architecture.
        kept: its layers that stay.
        shape: of the student.
        teacher: shape of the teacher.
        groups: groups of experts that must stay equally large.

    """
    inside = []
    for layer in kept:
        items: Items = {
            **_heads(importance.head_LH[layer], shape, teacher),
            "mlp": best(importance.mlp_LN[layer], shape.mlp) if len(importance.mlp_LN[layer]) else torch.arange(0),
        }
        if shape.expert and len(importance.expert_LE[layer]):
            per_group = importance.expert_LE[layer].view(groups, -1)
            chosen = [
                best(values, shape.expert // groups) + number * per_group.shape[1]
                for number, values in enumerate(per_group)
            ]
            items = {**items, "expert": torch.cat(chosen)}
        inside.append(items)
    hidden = importance.hidden_LD[list(kept)].sum(dim=0)
    return Widths(family, shape, best(hidden, shape.hidden), inside)


def _heads(importance_H: torch.Tensor, shape: Shape, teacher: Shape) -> Items:
    groups = importance_H.view(teacher.kv, -1)
    kept_groups = best(groups.sum(dim=1), shape.kv)
    per_group = shape.head // shape.kv
    heads = [best(groups[group], per_group) + group * groups.shape[1] for group in kept_groups.tolist()]
    return {"kv": kept_groups, "head": torch.cat(heads)}


def best(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the `count` largest values, ascending; of equal ones the earlier."""
    order = torch.sort(importance, descending=True, stable=True).indices
    return order[:count].sort().values
