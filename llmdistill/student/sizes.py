"""Choosing a shape from a number of parameters.

The rules, in this order:

1. Parameters are counted over all weights, embeddings and experts included, tied ones once.
2. Heads keep their size, and key-value heads are dropped with the query heads that share them; a model with one
   key-value head drops query heads.
3. hidden_size and intermediate_size are multiples of 64, or of 8 below 1,024 hidden channels in the teacher;
   hidden_size is a multiple of the heads.
4. The embeddings are as narrow as hidden_size; their rows, and a mixture's experts, stay.
5. Of all shapes within 5 % of the asked number, the one with the smallest cost: the sum of the squared logarithms of
   what is left of hidden_size, heads and intermediate_size, and twice that of the layers. Even cuts are cheap, and
   depth is dearer than width (Minitron, arXiv 2407.14679, finds width-pruned models better up to 15B).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from llmdistill.errors import ConfigError
from llmdistill.student.cutting import item_width
from llmdistill.student.families import Family
from llmdistill.student.layer_choice import uniform_layers
from llmdistill.student.shape import Shape, fills_hidden

TOLERANCE = 0.05
"""How far the number of parameters may be from what is asked."""

_DEPTH_COST = 2.0

_HEAD_CHOICES = 16
"""Numbers of key-value heads that are tried; a teacher with more of them drops several at a time."""


@dataclass(frozen=True)
class Candidate:
    """A shape that could be chosen."""

    shape: Shape
    parameters: int
    cost: float


_Axes = tuple[tuple[tuple[str, ...], int], ...]
"""A parameter's axes as (spaces, width of an item); without spaces, the width is that of the axis."""


class ParameterCount:
    """Counts the parameters of shapes cut from a teacher, without building them.

    Layers may be of different kinds (dense, mixture of experts); those of a shape are taken at equal distances.

    Args:
        parameters: the teacher's parameters by name, tied ones once.
        prefix: path of its layers.
        family: its architecture.
        teacher: its shape.

    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], prefix: str, family: Family, teacher: Shape) -> None:
        outside: list[_Axes] = []
        layers: list[list[_Axes]] = [[] for _ in range(teacher.layers)]
        for name, tensor in parameters.items():
            inner = name.removeprefix(f"{prefix}.")
            number, _, within = inner.partition(".")
            axes = tuple(
                ((), length) if axis == "-" else (tuple(axis.split("|")), item_width(axis, length, teacher))
                for axis, length in zip(family.axes(name if inner == name else within), tensor.shape, strict=True)
            )
            (outside if inner == name else layers[int(number)]).append(axes)
        self._outside = outside
        self._kinds = [tuple(layer) for layer in layers]

    def __call__(self, shape: Shape) -> int:
        """Parameters of a shape."""
        kinds = collections.Counter(self._kinds[number] for number in uniform_layers(len(self._kinds), shape.layers))
        total = _size(self._outside, shape)
        return total + sum(number * _size(kind, shape) for kind, number in kinds.items())


def _size(weights: Iterable[_Axes], shape: Shape) -> int:
    return sum(
        math.prod(width * (sum(shape.size(space) for space in spaces) if spaces else 1) for spaces, width in axes)
        for axes in weights
    )


def choose_shape(
    count: ParameterCount, parameters: int, teacher: Shape, family: Family, fixed: Mapping[str, int]
) -> list[Candidate]:
    """The shapes within the tolerance, best first.

    Args:
        count: of the teacher.
        parameters: asked for.
        teacher: its shape.
        family: its architecture.
        fixed: sizes that a person gave (`layers` or a space).

    Raises:
        ConfigError: there is none; the nearest number is named.

    """
    found: list[Candidate] = []
    nearest = 0
    for shape in _shapes(count, parameters, teacher, family, fixed):
        number = count(shape)
        if abs(number - parameters) < abs(nearest - parameters):
            nearest = number
        if abs(number - parameters) <= TOLERANCE * parameters:
            found.append(Candidate(shape, number, _cost(shape, teacher)))
    if not found:
        raise ConfigError(
            f"no shape has {parameters:,} parameters within {TOLERANCE:.0%}; the nearest has {nearest:,}",
            where="student.from_teacher.parameters",
            fix="ask for another number, or free a size that is given",
        )
    return sorted(found, key=lambda candidate: (candidate.cost, abs(candidate.parameters - parameters)))


def table(candidates: list[Candidate], teacher: Candidate, rows: int = 6) -> str:
    """The teacher, the chosen shape and the next best ones, for a person."""
    lines = [
        f"{'':10}{'layers':>7}{'hidden':>8}{'heads':>7}{'kv':>5}{'mlp':>8}{'experts':>9}{'parameters':>16}{'cost':>8}"
    ]
    marked = [("teacher", teacher), *zip(["chosen"] + [""] * rows, candidates[:rows], strict=False)]
    for mark, candidate in marked:
        shape = candidate.shape
        lines.append(
            f"{mark:10}{shape.layers:>7}{shape.hidden:>8}{shape.head:>7}{shape.kv:>5}{shape.mlp:>8}"
            f"{shape.expert or '-':>9}{candidate.parameters:>16,}{candidate.cost:>8.3f}"
        )
    return "\n".join(lines)


def _cost(shape: Shape, teacher: Shape) -> float:
    def square(space: str) -> float:
        return math.log(shape.size(space) / teacher.size(space)) ** 2

    return _DEPTH_COST * square("layers") + square("hidden") + square("head") + square("mlp")


def _shapes(
    count: ParameterCount, parameters: int, teacher: Shape, family: Family, fixed: Mapping[str, int]
) -> Iterator[Shape]:
    step = 64 if teacher.hidden >= 1024 else 8
    for layers in [fixed["layers"]] if "layers" in fixed else range(1, teacher.layers + 1):
        for head, kv in _heads(teacher, fixed):
            for hidden in _hiddens(head, step, teacher, family, fixed):
                shape = dataclasses.replace(teacher, layers=layers, head=head, kv=kv, hidden=hidden)
                shape = dataclasses.replace(shape, expert=fixed.get("expert", teacher.expert))
                yield from _neurons(shape, count, parameters, step, teacher, family, fixed)


def _heads(teacher: Shape, fixed: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    if "head" in fixed:
        yield fixed["head"], fixed.get("kv", min(teacher.kv, fixed["head"]))
        return
    per_group = teacher.head // teacher.kv
    if teacher.kv == 1:
        yield from ((head, 1) for head in range(1, teacher.head + 1))
        return
    step = max(teacher.kv // _HEAD_CHOICES, 1)
    for kv in [fixed["kv"]] if "kv" in fixed else range(step, teacher.kv + 1, step):
        yield kv * per_group, kv


def _hiddens(head: int, step: int, teacher: Shape, family: Family, fixed: Mapping[str, int]) -> list[int]:
    if "hidden" in fixed:
        return [fixed["hidden"]]
    if fills_hidden(family, teacher):
        return [head * teacher.head_dim]
    divisor = head if teacher.hidden % teacher.head == 0 else 1
    return [hidden for hidden in range(step, teacher.hidden + 1, step) if hidden % divisor == 0]


def _neurons(
    shape: Shape,
    count: ParameterCount,
    parameters: int,
    step: int,
    teacher: Shape,
    family: Family,
    fixed: Mapping[str, int],
) -> Iterator[Shape]:
    """The one number of neurons that comes nearest to the asked parameters: they grow linearly with it."""
    if "mlp" in fixed or family.mlp_over_hidden:
        yield dataclasses.replace(shape, mlp=fixed.get("mlp", shape.hidden * (family.mlp_over_hidden or 0)))
        return
    first, second = (count(dataclasses.replace(shape, mlp=mlp)) for mlp in (step, 2 * step))
    if second == first:  # all layers are mixtures of experts
        yield shape
        return
    steps = 1 + round((parameters - first) / (second - first))
    if 1 <= steps <= teacher.mlp // step:
        yield dataclasses.replace(shape, mlp=steps * step)
