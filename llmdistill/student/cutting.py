"""Cutting a student out of a teacher: some of its layers, and some items of each space within them.

The student is built by its own class from its own config and then given the teacher's weights, so that whatever follows
from the config (positions in the KV cache, masks per layer, rotary tables) is right by construction. Weights are
copied; the teacher stays as it was, and so do torch's random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.student.families import SPACES, Family
from llmdistill.student.layer_config import keep_layers_in_config
from llmdistill.student.shape import Shape, shape_in_config, shape_of

Items = Mapping[str, torch.Tensor]
"""Space → numbers of the items that stay, ascending; a space that is not there stays whole."""


@dataclass(frozen=True)
class Widths:
    """What stays of each layer."""

    family: Family
    shape: Shape
    """Of the student."""
    hidden: torch.Tensor
    """Channels that stay, the same everywhere."""
    inside: Sequence[Items]
    """For each kept layer."""


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of a model's decoder layers.

    Raises:
        ConfigError: there is no such list, or more than one.

    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise ConfigError(
            f"the decoder layers of {type(model).__name__} cannot be told: {[name for name, _ in lists] or 'no list'}",
            where="student.from_teacher",
            fix="give student.model instead",
        )
    return lists[0]


def keep_layers(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model with only the decoder layers `kept`, in that order; the teacher is untouched.

    Raises:
        ConfigError: the model's decoder layers cannot be found.

    """
    return cut(teacher, kept, None)


def cut(teacher: PreTrainedModel, kept: Sequence[int], widths: Widths | None) -> PreTrainedModel:
    """A new model with the layers `kept` and, of these, what `widths` names.

    Args:
        teacher: in any precision, which the student takes over.
        kept: numbers of layers, ascending.
        widths: None keeps all widths, and works for architectures that are not in the table of families.

    Raises:
        ConfigError: the architecture, or a weight of it, is not known.

    """
    prefix, layers = decoder_layers(teacher)
    values = keep_layers_in_config(teacher.config.to_dict(), kept, len(layers))
    values[_layer_key(teacher.config)] = len(kept)
    if widths is not None:
        values = shape_in_config(values, widths.family, widths.shape, teacher.config)
    state = {
        name: tensor if widths is None else _narrow(teacher, old, layer, tensor, widths)
        for old, layer, name, tensor in _kept_tensors(teacher.state_dict(), prefix, kept)
    }
    return build(type(teacher.config).from_dict(values), state, teacher.dtype)


def build(config: Any, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """A model of a config with copies of the weights `state`, which must be exactly its own."""
    with torch.random.fork_rng(devices=[]):
        student: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    student.load_state_dict(state, strict=True)
    student.tie_weights()
    student.eval()
    result: PreTrainedModel = student
    return result


def _layer_key(config: Any) -> str:
    return str(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))


def _kept_tensors(
    state: Mapping[str, torch.Tensor], prefix: str, kept: Sequence[int]
) -> Iterator[tuple[str, int | None, str, torch.Tensor]]:
    """The name within its layer (or whole), the new number of the layer, the new whole name, and the tensor."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    numbers = {old: new for new, old in enumerate(kept)}
    for name, tensor in state.items():
        if (match := pattern.fullmatch(name)) is None:
            yield name, None, name, tensor
        elif (new := numbers.get(int(match[1]))) is not None:
            yield match[2], new, f"{prefix}.{new}.{match[2]}", tensor


def _narrow(
    teacher: PreTrainedModel, name: str, layer: int | None, tensor: torch.Tensor, widths: Widths
) -> torch.Tensor:
    sizes = shape_of(teacher.config, widths.family)
    items: dict[str, torch.Tensor] = {"hidden": widths.hidden, **({} if layer is None else widths.inside[layer])}
    for dimension, axis in enumerate(widths.family.axes(name)):
        if axis != "-":
            index = axis_index(axis, tensor.shape[dimension], sizes, items)
            tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor


def axis_index(axis: str, length: int, sizes: Shape, items: Items) -> torch.Tensor:
    """Positions along an axis that stay.

    Args:
        axis: its spaces, see `families.py`.
        length: of the axis before.
        sizes: of the teacher.
        items: what stays.

    """
    spaces = axis.split("|")
    width = item_width(axis, length, sizes)
    parts, offset = [], 0
    for space in spaces:
        assert space in SPACES
        kept = items.get(space)
        kept = torch.arange(sizes.size(space)) if kept is None else kept.cpu()
        parts.append(offset + (kept[:, None] * width + torch.arange(width)).flatten())
        offset += sizes.size(space) * width
    return torch.cat(parts)


def item_width(axis: str, length: int, sizes: Shape) -> int:
    """How wide one item of an axis is.

    Raises:
        ConfigError: the axis is no whole number of items.

    """
    items = sum(sizes.size(space) for space in axis.split("|"))
    if not items or length % items:
        raise ConfigError(f"an axis of {length} is not {items} × {axis}", where="student.from_teacher")
    return length // items
