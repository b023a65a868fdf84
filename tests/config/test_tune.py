"""The section `tune`, and settings by dotted keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmdistill.config.load import load_config, setting_of, with_settings
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError
from tests.config.test_load import MINIMAL, path  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{uniform: [1, 0.5]}", "the first bound must be below the second"),
        ("{log_uniform: [0, 1]}", "must be above 0"),
        ("{choice: []}", "tune.search.train.lr.choice"),
        ("{}", "give exactly one of choice, uniform and log_uniform"),
        ("{choice: [1], uniform: [0, 1]}", "give exactly one of choice, uniform and log_uniform"),
        ("{unifrom: [0, 1]}", "did you mean tune.search.train.lr.uniform?"),
    ],
)
def test_spaces_that_cannot_be_are_named(path: Path, space: str, message: str) -> None:  # noqa: F811
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"tune={{search: {{train.lr: {space}}}}}"])
    assert message in str(caught.value)


def test_settings_by_the_name_of_an_objective() -> None:
    config = RunConfig.model_validate(MINIMAL)
    changed = with_settings(config, {"objectives.sequence_ce.weight": 0.3, "student.from_teacher.layers": 3})
    assert changed.objectives[1].weight == setting_of(changed, "objectives.sequence_ce.weight") == 0.3
    assert setting_of(changed, "student.from_teacher.layers") == 3
    assert setting_of(changed, "student.config.hidden_size") is None
    assert config.objectives[1].weight == 0.1


def test_what_was_not_written_stays_unwritten() -> None:
    # With a live teacher a tail that stands there is refused.
    live = RunConfig.model_validate(MINIMAL | {"train": {"soft_labels": "live"}})
    assert with_settings(live, {"train.lr": 1.0e-3}).train.lr == 1.0e-3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lrr", 1.0, "unknown key; did you mean train.lr?"),
        ("objectives.forwrd_kl.weight", 1.0, "did you mean objectives.forward_kl?"),
        ("objectives.forward_kl.weigth", 1.0, "did you mean objectives.0.weight?"),
        ("objectives.forward_kl.temperature", 2.0, "log-sum-exp at that temperature"),
    ],
)
def test_faults_of_settings_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_settings(RunConfig.model_validate(MINIMAL), {key: value})
    assert message in str(caught.value)
