"""Objectives in which the student is its own teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from llmdistill.config.weighting import ObjectiveConfig


class DeepSupervisionConfig(ObjectiveConfig):
    """Forward KL from the student's last layer to its own intermediate ones, through the same norm and head."""

    type: Literal["deep_supervision"]
    """Name of the objective."""
    layers: tuple[PositiveInt, ...] = Field(min_length=1)
    """Intermediate layers: 1 is the first block."""


class ContrastiveConfig(ObjectiveConfig):
    """Two passes over a record with different dropout agree, and differ from the other records of the packed sequence.

    Costs two more passes of the student. A sequence that holds a single record has nothing to tell it from.
    """

    type: Literal["contrastive"]
    """Name of the objective."""
    temperature: float = Field(default=0.05, gt=0.0)
    """Of the softmax over the cosines."""
    dropout: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the embeddings' entries that each of the two passes leaves out."""


class SelfDistillationConfig(ObjectiveConfig):
    """Forward KL from an earlier state of the student to the student, over the whole vocabulary."""

    type: Literal["self_distillation"]
    """Name of the objective."""
    model: str
    """A model folder, for example `RUN/student` of the run before; or `ema`: the moving average of the weights that
    `train.ema_decay` keeps, brought up to date after every step."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Softmax temperature on both sides; the value is multiplied by its square."""


SelfDistillationObjective = DeepSupervisionConfig | ContrastiveConfig | SelfDistillationConfig
