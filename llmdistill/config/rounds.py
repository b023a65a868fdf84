"""`rounds:` the student learns on what it writes itself, scored by the teacher."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from llmdistill.config.base import Section
from llmdistill.config.filters import FiltersConfig
from llmdistill.config.teacher import SamplingConfig


class RoundsConfig(Section):
    """Every round the student answers prompts, the teacher scores the answers, and the student trains on them beside
    the teacher's own text."""

    count: PositiveInt
    """Rounds."""
    steps: PositiveInt
    """Optimizer steps of a round; `count × steps` are all of the training."""
    prompts: PositiveInt
    """Training prompts that the student answers for a round; the next ones each time, and from the start again when all
    have been."""
    on_policy: tuple[float, float] = (0.5, 0.5)
    """Share of a step's packed sequences that holds the student's text, in the first round and in the last one, and in
    a line between; one number means both. The rest is the teacher's text, epoch after epoch of the cache."""
    replay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the student's text that comes from earlier rounds, …"""
    max_age: PositiveInt = 1
    """… at most so many rounds back."""
    ahead: bool = False
    """Prepare a round while the one before is trained on, with the student of its start: nobody waits for the other,
    and text is one round older. The cluster must hold trainers, student and teacher at once."""
    engine: Literal["vllm", "huggingface", "fake"] = "vllm"
    """What the student answers with."""
    replicas: PositiveInt = 1
    """Of the student. They stay from round to round and take the new weights as they run, where the cluster holds them
    beside the trainers."""
    sampling: SamplingConfig = SamplingConfig(temperature=1.0)
    """How the student answers. At a temperature of 1 and a top_p of 1 its text is drawn from its own distribution."""
    filters: FiltersConfig = FiltersConfig()
    """Which of its answers are scored and trained on."""

    @model_validator(mode="before")
    @classmethod
    def _one_share(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(share := values.get("on_policy"), int | float):
            return {**values, "on_policy": (share, share)}
        return values

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not all(0 <= share <= 1 for share in self.on_policy):
            raise ValueError(f"on_policy: shares lie between 0 and 1, found {list(self.on_policy)}")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all rounds."""
        return self.count * self.steps

    def share(self, number: int) -> float:
        """Share of the student's text in round 0 … count - 1."""
        first, last = self.on_policy
        return first + (last - first) * (number / (self.count - 1) if self.count > 1 else 0.0)

    def written_at(self, number: int) -> int:
        """The optimizer step of the student that writes for a round."""
        return max(number - self.ahead, 0) * self.steps
