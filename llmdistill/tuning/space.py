"""Which settings are tried: drawn from the search space, the same ones for the same seed."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmdistill.config.load import setting_of, with_settings
from llmdistill.config.objectives import ForwardKLConfig, TemperedConfig
from llmdistill.config.run import RunConfig
from llmdistill.config.train import FREE_TO_CHANGE
from llmdistill.config.tune import SpaceConfig, TuneConfig
from llmdistill.errors import ConfigError

_SECTIONS = ("student", "objectives", "train")
_LENGTHS = ("epochs", "max_steps")
_DRAWS_PER_TRIAL = 20
"""How often a trial may be drawn again because it was there already."""

Space = Mapping[str, SpaceConfig]


@dataclass(frozen=True)
class Drawn:
    """The settings of one trial."""

    number: int
    """0 is the configuration as it stands."""
    settings: dict[str, Any]
    """Searched key → value."""
    config: RunConfig


def search_space(config: RunConfig) -> Space:
    """What `tune.search` says, or a default that fits the configuration.

    Raises:
        ConfigError: a key is unknown or not for searching, or a value does not fit, alone with the other settings.

    """
    space: Space = (config.tune.search if config.tune else {}) or _default_space(config)
    for key, values in space.items():
        for value in values.choice or values.uniform or values.log_uniform or ():
            try:
                with_settings(config, {key: value})
            except ConfigError as error:
                raise ConfigError(f"{value!r} cannot be: {error}", where=f"tune.search: {key}") from None
        _require_searchable(key)
    return space


def draw_trials(config: RunConfig, space: Space) -> list[Drawn]:
    """The trials, each with other settings; at most `tune.trials`.

    More trials of one seed begin with the same ones.

    Raises:
        ConfigError: values do not fit together.

    """
    tune = config.tune or TuneConfig()
    own = {key: setting_of(config, key) for key in space}
    trials = [Drawn(0, own, config)]
    seen = {json.dumps(own, sort_keys=True)}
    for settings in _draws(space, tune.seed, tune.trials * _DRAWS_PER_TRIAL):
        if len(trials) == tune.trials:
            break
        if (text := json.dumps(settings, sort_keys=True)) in seen:
            continue
        seen.add(text)
        try:
            trials.append(Drawn(len(trials), settings, with_settings(config, settings)))
        except ConfigError as error:
            shown = ", ".join(f"{key}={value}" for key, value in settings.items())
            raise ConfigError(f"{shown} cannot be together: {error}", where="tune.search") from None
    return trials


def _draws(space: Space, seed: int, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        yield {key: _draw(values, generator) for key, values in space.items()}


def _draw(values: SpaceConfig, generator: np.random.Generator) -> Any:
    if values.choice is not None:
        return values.choice[int(generator.integers(len(values.choice)))]
    if values.uniform is not None:
        return _rounded(generator.uniform(*values.uniform))
    assert values.log_uniform is not None
    low, high = map(math.log, values.log_uniform)
    return _rounded(math.exp(generator.uniform(low, high)))


def _rounded(value: float) -> float:
    """To three digits: what a person can read, and write down."""
    return float(f"{value:.3g}")


def _require_searchable(key: str) -> None:
    section, _, name = key.partition(".")
    where = f"tune.search: {key}"
    if section not in _SECTIONS:
        nearest = difflib.get_close_matches(section, _SECTIONS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"use keys of {', '.join(_SECTIONS)}"
        raise ConfigError(f"all trials share what lies outside of {', '.join(_SECTIONS)}; {hint}", where=where)
    if section == "train" and name in _LENGTHS:
        raise ConfigError("the budget says how long a trial is", where=where, fix="leave it out of the search")
    if section == "train" and name.split(".")[0] in FREE_TO_CHANGE:
        raise ConfigError("it does not change what comes out", where=where, fix="leave it out of the search")


def _default_space(config: RunConfig) -> Space:
    """Learning rate, weights against the first one, captured temperatures, and which layers stay."""
    space = {"train.lr": _around(config.train.lr, 4.0)}
    captured = sorted({1.0, *config.capture.temperatures}) if config.capture.kind == "top_k" else []
    for number, objective in enumerate(config.objectives):
        if number:
            # AdamW does not see a common factor of all weights.
            space[f"objectives.{objective.name}.weight"] = _around(objective.weight, 5.0)
        if isinstance(objective, TemperedConfig) and len(captured) > 1:
            truth = isinstance(objective, ForwardKLConfig) and objective.tail == "ground_truth"
            if objective.temperature_schedule is None and not truth:
                space[f"objectives.{objective.name}.temperature"] = SpaceConfig(choice=tuple(captured))
    cut = config.student.from_teacher
    if cut is not None and not isinstance(cut.layers, tuple) and (cut.layers or cut.parameters):
        space["student.from_teacher.choose_layers"] = SpaceConfig(
            choice=tuple(dict.fromkeys((cut.choose_layers, "uniform", "block_influence")))
        )
    return space


def _around(value: float, factor: float) -> SpaceConfig:
    return SpaceConfig(log_uniform=(_rounded(value / factor), _rounded(value * factor)))
