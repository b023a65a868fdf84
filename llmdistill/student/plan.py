"""From what a person asks of a student to its exact shape."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.config.student import FromTeacherConfig
from llmdistill.student.cutting import decoder_layers
from llmdistill.student.families import Family, family_of
from llmdistill.student.layer_choice import require_layers, uniform_layers
from llmdistill.student.layer_config import keep_layers_in_config
from llmdistill.student.shape import Shape, fills_hidden, require_shape, shape_in_config, shape_of
from llmdistill.student.sizes import Candidate, ParameterCount, choose_shape, table


@dataclasses.dataclass(frozen=True)
class Plan:
    """A decision."""

    shape: Shape
    table: str
    """What it was chosen from; empty where nothing was."""


def plan_shape(wanted: FromTeacherConfig, count: ParameterCount, teacher: Shape, family: Family, config: Any) -> Plan:
    """The student's shape.

    Args:
        wanted: what was asked.
        count: counts parameters of shapes.
        teacher: shape of the teacher.
        family: its architecture.
        config: its config.

    Raises:
        ConfigError: it cannot be.

    """
    fixed = _fixed(wanted)
    if wanted.parameters is None:
        shape = _completed(fixed, teacher, family)
        require_shape(shape, family, teacher, config)
        return Plan(shape, "")
    candidates = choose_shape(count, wanted.parameters, teacher, family, fixed)
    require_shape(candidates[0].shape, family, teacher, config)
    return Plan(candidates[0].shape, table(candidates, Candidate(teacher, count(teacher), 0.0)))


def planned_config(config: dict[str, Any], wanted: FromTeacherConfig) -> dict[str, Any]:
    """The student's config.json from the teacher's alone, without weights: what will be cut, but for which parts stay.

    Args:
        config: the teacher's config.json.
        wanted: what was asked.

    Raises:
        ConfigError: it cannot be.

    """
    values = dict(config)
    parsed: Any = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        teacher = AutoModelForCausalLM.from_config(parsed)
    prefix, blocks = decoder_layers(teacher)
    shape: Shape | None = None
    if wanted.cuts_width:
        family = family_of(parsed)
        teacher_shape = shape_of(parsed, family)
        count = ParameterCount(dict(teacher.named_parameters()), prefix, family, teacher_shape)
        shape = plan_shape(wanted, count, teacher_shape, family, parsed).shape
        values = shape_in_config(parsed.to_dict(), family, shape, parsed)
    else:
        values = parsed.to_dict()
    if isinstance(wanted.layers, tuple):
        kept = require_layers(wanted.layers, len(blocks))
    else:
        # Which layers stay may depend on weights; how many does not.
        layers = wanted.layers or (shape.layers if shape is not None else len(blocks))
        kept = uniform_layers(len(blocks), layers)
    kept_values = keep_layers_in_config(values, kept, len(blocks))
    return {**kept_values, parsed.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(kept)}


def _fixed(wanted: FromTeacherConfig) -> dict[str, int]:
    layers = len(wanted.layers) if isinstance(wanted.layers, tuple) else wanted.layers
    sizes = {
        "layers": layers,
        "hidden": wanted.hidden_size,
        "head": wanted.num_attention_heads,
        "kv": wanted.num_key_value_heads,
        "mlp": wanted.intermediate_size,
        "expert": wanted.experts,
    }
    return {space: size for space, size in sizes.items() if size is not None}


def _completed(fixed: dict[str, int], teacher: Shape, family: Family) -> Shape:
    """Sizes that were not given follow from those that were, as far as the architecture ties them; else they stay."""
    sizes = dict(fixed)
    if fills_hidden(family, teacher):
        if "hidden" in sizes:
            sizes.setdefault("head", max(sizes["hidden"] // teacher.head_dim, 1))
        elif "head" in sizes:
            sizes["hidden"] = sizes["head"] * teacher.head_dim
    per_group = teacher.head // teacher.kv
    if "kv" in sizes:
        sizes.setdefault("head", sizes["kv"] * per_group)
    elif "head" in sizes:
        # Whole groups where the number allows it; else as many key-value heads as can share the heads evenly.
        head = sizes["head"]
        sizes["kv"] = head // per_group if head % per_group == 0 else math.gcd(head, teacher.kv)
    if family.mlp_over_hidden and "hidden" in sizes:
        sizes.setdefault("mlp", family.mlp_over_hidden * sizes["hidden"])
    return dataclasses.replace(teacher, **sizes)
