"""What every objective has: a weight, and how it changes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmdistill.config.base import Section


class ScheduleConfig(Section):
    """A factor of the weight that changes while the training runs."""

    shape: Literal["constant", "linear", "cosine"] = "linear"
    """How it goes from `start` to `end`; `constant` is `end` throughout."""
    start: float = Field(default=0.0, ge=0.0)
    """Factor at the first step."""
    end: float = Field(default=1.0, ge=0.0)
    """Factor from `until` on."""
    until: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the steps after which `end` holds."""


class ObjectiveConfig(Section):
    """What every objective has."""

    type: str
    """Name of the objective."""
    weight: float = Field(default=1.0, gt=0.0)
    """Factor in the total."""
    schedule: ScheduleConfig | None = None
    """Changes the weight while the training runs."""
