"""`objectives:` a list of weighted objectives, told apart by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llmdistill.config.base import Section


class ObjectiveConfig(Section):
    """What every objective has."""

    weight: float = Field(default=1.0, gt=0.0)
    """Factor in the total."""


class ForwardKLConfig(ObjectiveConfig):
    """KL(teacher ‖ student) on the stored rows."""

    type: Literal["forward_kl"]
    """Name of the objective."""
    tail: Literal["bucket"] = "bucket"
    """What stands for the tokens outside the kept set: `bucket` is one extra bucket on both sides."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Softmax temperature on both sides."""

    @field_validator("temperature")
    @classmethod
    def _temperature_is_captured(cls, value: float) -> float:
        if value != 1.0:
            raise ValueError(
                "a temperature other than 1.0 needs the teacher's log-sum-exp at that temperature, which top_k capture"
                " does not hold; use 1.0"
            )
        return value


class SequenceCEConfig(ObjectiveConfig):
    """Cross-entropy of the student on the tokens of the response."""

    type: Literal["sequence_ce"]
    """Name of the objective."""


AnyObjective = Annotated[ForwardKLConfig | SequenceCEConfig, Field(discriminator="type")]
