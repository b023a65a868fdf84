"""The shape of a decoder: how many layers, and how many items of each space (see `families.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmdistill.errors import ConfigError
from llmdistill.student.families import Family


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; a space that the architecture does not have is 0."""

    layers: int
    hidden: int
    head: int
    kv: int
    head_dim: int
    mlp: int
    expert: int

    def size(self, space: str) -> int:
        """Items of a space."""
        value: int = getattr(self, space)
        return value


def shape_of(config: Any, family: Family) -> Shape:
    """The shape that a config describes."""

    def read(space: str) -> int | None:
        key = family.field(space)
        value: int | None = None if key is None else getattr(config, key, None)
        return value

    hidden, head = read("hidden"), read("head")
    assert hidden and head
    return Shape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        head=head,
        kv=read("kv") or head,
        head_dim=getattr(config, "head_dim", None) or hidden // head,
        mlp=read("mlp") or hidden * (family.mlp_over_hidden or 4),
        expert=(read("expert") or 0) if family.router else 0,
    )


def fills_hidden(family: Family, teacher: Shape) -> bool:
    """Whether the heads of a student must together be as wide as its hidden states."""
    return family.heads_fill_hidden and teacher.hidden == teacher.head * teacher.head_dim


def shape_in_config(values: dict[str, Any], family: Family, shape: Shape, config: Any) -> dict[str, Any]:
    """A teacher's config as values, with the widths of a shape; the layers are the matter of `layer_config.py`."""
    result = dict(values)
    for space in ("hidden", "head", "kv", "mlp", "expert"):
        key = family.field(space)
        if key is not None and shape.size(space):
            result[config.attribute_map.get(key, key)] = shape.size(space)
    if not fills_hidden(family, shape_of(config, family)) and "qk_rope_head_dim" not in values:
        # Else the size of a head would silently follow the new width, or be the architecture's default.
        result["head_dim"] = shape.head_dim
    return result


def require_shape(shape: Shape, family: Family, teacher: Shape, config: Any) -> None:
    """Refuse a shape that cannot be cut from a teacher.

    Raises:
        ConfigError: naming the key and a value that works.

    """
    _require_no_growth(shape, teacher)
    where = "student.from_teacher"
    if shape.head % shape.kv:
        raise ConfigError(
            f"{shape.head} attention heads cannot share {shape.kv} key-value heads evenly",
            where=f"{where}.num_attention_heads",
            fix=f"use a multiple of {shape.kv}",
        )
    if shape.head // shape.kv > teacher.head // teacher.kv:
        raise ConfigError(
            f"{shape.head // shape.kv} heads per key-value head are more than"
            f" the teacher's {teacher.head // teacher.kv}",
            where=f"{where}.num_attention_heads",
            fix=f"use at most {shape.kv * (teacher.head // teacher.kv)} heads, or more key-value heads",
        )
    if fills_hidden(family, teacher) and shape.hidden != shape.head * shape.head_dim:
        raise ConfigError(
            f"{shape.head} heads of size {shape.head_dim} do not make hidden_size {shape.hidden},"
            " as this architecture needs",
            where=f"{where}.hidden_size",
            fix=f"use {shape.head * shape.head_dim}",
        )
    if teacher.hidden % teacher.head == 0 and shape.hidden % shape.head:
        multiple = math.ceil(shape.hidden / shape.head) * shape.head
        raise ConfigError(
            f"hidden_size {shape.hidden} is not a multiple of {shape.head} attention heads",
            where=f"{where}.hidden_size",
            fix=f"use {multiple}",
        )
    if family.mlp_over_hidden and shape.mlp != family.mlp_over_hidden * shape.hidden:
        raise ConfigError(
            f"this architecture has {family.mlp_over_hidden} neurons for each hidden channel,"
            f" not {shape.mlp} for {shape.hidden}",
            where=f"{where}.intermediate_size",
            fix="leave it out",
        )
    if shape.expert:
        _require_experts(shape.expert, config)


def _require_no_growth(shape: Shape, teacher: Shape) -> None:
    names: Mapping[str, str] = {
        "layers": "layers",
        "hidden": "hidden_size",
        "head": "num_attention_heads",
        "kv": "num_key_value_heads",
        "mlp": "intermediate_size",
        "expert": "experts",
    }
    for space, key in names.items():
        if shape.size(space) > teacher.size(space):
            raise ConfigError(
                f"the teacher has {teacher.size(space)} {key.replace('_', ' ')}, {shape.size(space)} are asked for",
                where=f"student.from_teacher.{key}",
                fix=f"use at most {teacher.size(space)}" if teacher.size(space) else "leave it out",
            )


def _require_experts(experts: int, config: Any) -> None:
    per_token = config.num_experts_per_tok
    groups = getattr(config, "n_group", None) or 1
    open_groups = getattr(config, "topk_group", None) or groups
    # A group is ranked by the sum of its two best experts, so it needs two.
    least = max(
        per_token if groups == 1 else math.ceil(per_token / open_groups) * groups, 2 * groups if groups > 1 else 1
    )
    if experts % groups or experts < least:
        raise ConfigError(
            f"{experts} experts in {groups} groups cannot route {per_token} a token",
            where="student.from_teacher.experts",
            fix=f"use a multiple of {groups} of at least {least}",
        )
