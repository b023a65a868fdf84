"""`tune:` what `llmdistill tune` searches, and how much of the training it may spend on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from llmdistill.config.base import Section


class SpaceConfig(Section):
    """The values that a setting may take: exactly one of `choice`, `uniform` and `log_uniform`."""

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """One of these."""
    uniform: tuple[float, float] | None = None
    """Any number from the first to the second."""
    log_uniform: tuple[float, float] | None = None
    """The same, each order of magnitude as likely as the others."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of choice, uniform and log_uniform")
        bounds = self.uniform or self.log_uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the first bound must be below the second, found {list(bounds)}")
        if self.log_uniform and self.log_uniform[0] <= 0.0:
            raise ValueError(f"bounds of log_uniform must be above 0, found {list(self.log_uniform)}")
        return self


class TuneConfig(Section):
    """Short trainings with other settings, the worse ones of which are stopped early."""

    trials: PositiveInt = 12
    """Trainings, the one with the settings of this file among them. Settings that were drawn twice are tried once."""
    budget: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of the whole training's optimizer steps that a trial takes when it is not stopped. Its learning rate and
    schedules run over these."""
    grace: float = Field(default=0.25, gt=0.0, le=1.0)
    """Share of the budget before a trial may be stopped; 1: none is."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """At `grace`, and each time a trial has gone on for so many times as long, the best one in so many continue."""
    metric: Literal["kl", "cross_entropy"] = "kl"
    """What is minimised, on the held-out records, as the evaluation measures it: KL(teacher ‖ student) at temperature
    1, or the cross-entropy on the tokens of the response. Neither depends on the objectives of a trial."""
    search: dict[str, SpaceConfig] = Field(default={})
    """Dotted keys of `student`, `objectives` and `train`, each with the values it may take; an objective goes by its
    name: `objectives.forward_kl.weight: {uniform: [0.5, 1.0]}`. Empty: learning rate, the weights of all objectives but
    the first, captured temperatures and the choice of layers."""
    workers: PositiveInt | None = None
    """Training processes of a trial; null: `train.workers`. The fewer, the more trials run at once, and with 1 they
    start fastest."""
    seed: int = 0
    """Of the settings that are drawn."""
