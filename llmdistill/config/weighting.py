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

    @property
    def name(self) -> str:
        """What its columns of metrics.jsonl begin with; different for each objective of a run."""
        return metric_name(self.type)


class TextObjectiveConfig(ObjectiveConfig):
    """An objective on the student's distributions, which may look at some records only."""

    text: Literal["all", "teacher", "student"] = "all"
    """Whose text it looks at; its value on other rows is 0. `student`: records that the student wrote; `teacher`: all
    others, which the teacher wrote or the corpus holds. A type of objective may stand once for each."""

    @property
    def name(self) -> str:
        """The type, and whose text where that is not all: `forward_kl_student`."""
        return metric_name(self.type, self.text)


def metric_name(type: str, text: str = "all") -> str:
    """The name of an objective of this type on this text."""
    return type if text == "all" else f"{type}_{text}"
