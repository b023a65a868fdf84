"""Objectives that compare the insides of the two models, so that the teacher itself runs beside the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from llmdistill.config.weighting import ObjectiveConfig

Layer = Annotated[int, Field(ge=0)]
LayerMap = Literal["uniform", "last"] | tuple[tuple[Layer, Layer], ...]


class MappedConfig(ObjectiveConfig):
    """An objective on layers of the student that learn from layers of the teacher."""

    layers: LayerMap = "uniform"
    """`uniform`: pairs at equal depth; `last`: the last `count` of each; or a list of [student layer, teacher layer].
    0 is the embeddings, the number of blocks the last layer, which comes after the final norm."""
    count: PositiveInt | None = None
    """Pairs of `uniform` (by default one for each student layer) and of `last` (by default 1)."""


class HiddenMSEConfig(MappedConfig):
    """Mean squared difference of hidden states, projected where widths differ."""

    type: Literal["hidden_mse"]
    """Name of the objective."""


class HiddenCosineConfig(MappedConfig):
    """1 - cosine of hidden states, projected where widths differ."""

    type: Literal["hidden_cosine"]
    """Name of the objective."""


class AttentionKLConfig(MappedConfig):
    """KL(teacher ‖ student) of attention maps; runs both models with eager attention."""

    type: Literal["attention_kl"]
    """Name of the objective."""


class AttentionMSEConfig(MappedConfig):
    """Squared difference of attention maps; runs both models with eager attention."""

    type: Literal["attention_mse"]
    """Name of the objective."""


class RelationConfig(MappedConfig):
    """KL between self-attention relations (MiniLMv2), whatever the widths and heads."""

    type: Literal["relation"]
    """Name of the objective."""
    layers: LayerMap = "last"
    """As in `hidden_mse`, without 0: the attention of that block."""
    on: tuple[Literal["queries", "keys", "values"], ...] = Field(default=("queries", "keys", "values"), min_length=1)
    """Vectors whose relations are compared; their values are averaged."""
    heads: PositiveInt = 1
    """Relation heads that the vectors are cut into; divides the widths of both models."""


class RelationalConfig(MappedConfig):
    """Geometry of the states of a record."""

    layers: LayerMap = "last"
    """As in `hidden_mse`."""
    tokens: PositiveInt = 32
    """Supervised rows of a record that are compared, at equal distances; the cost grows with the square (angles: the
    cube)."""


class RelationalDistanceConfig(RelationalConfig):
    """Difference of the distances between tokens."""

    type: Literal["relational_distance"]
    """Name of the objective."""


class RelationalAngleConfig(RelationalConfig):
    """Difference of the angles between tokens."""

    type: Literal["relational_angle"]
    """Name of the objective."""


StructureObjective = (
    HiddenMSEConfig
    | HiddenCosineConfig
    | AttentionKLConfig
    | AttentionMSEConfig
    | RelationConfig
    | RelationalDistanceConfig
    | RelationalAngleConfig
)
