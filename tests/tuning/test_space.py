"""Which settings are tried."""

from __future__ import annotations

from typing import Any

import pytest

from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError
from llmdistill.tuning.space import draw_trials, search_space
from tests.config.test_load import MINIMAL


def configured(search: dict[str, Any] | None = None, trials: int = 12, **sections: Any) -> RunConfig:
    tune = {"trials": trials, "search": search or {}}
    return RunConfig.model_validate(MINIMAL | {"tune": tune} | sections)


def test_the_configuration_comes_first_and_more_trials_begin_with_the_same_ones() -> None:
    search = {
        "train.lr": {"log_uniform": [1.0e-4, 1.0e-2]},
        "objectives.forward_kl.weight": {"uniform": [0.5, 1.0]},
        "student.from_teacher.choose_layers": {"choice": ["uniform", "divergence"]},
    }
    few, many = (configured(search, trials) for trials in (5, 40))
    first, all_of_them = (draw_trials(config, search_space(config)) for config in (few, many))
    assert first[0].settings == dict(zip(search, (3.0e-4, 0.9, "uniform"), strict=True))
    assert first[0].config is few
    assert [one.settings for one in all_of_them[:5]] == [one.settings for one in first]
    assert len(all_of_them) == 40
    rates = [one.config.train.lr for one in all_of_them]
    assert all(1.0e-4 <= rate <= 1.0e-2 for rate in rates)
    assert 10 <= sum(rate < 1.0e-3 for rate in rates) <= 30  # half of the orders of magnitude
    assert {one.config.student.from_teacher.choose_layers for one in all_of_them} == {"uniform", "divergence"}
    assert all(0.5 <= one.config.objectives[0].weight <= 1.0 for one in all_of_them)


def test_equal_settings_are_tried_once() -> None:
    config = configured({"train.adam_beta2": {"choice": [0.9, 0.95, 0.99]}})
    assert sorted(one.config.train.adam_beta2 for one in draw_trials(config, search_space(config))) == [0.9, 0.95, 0.99]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("objectives.forward_kl.temperature", [1.0, 2.0], "2.0 cannot be: objectives.0.temperature: 2 needs"),
        ("train.lrr", [1.0], "did you mean train.lr?"),
        ("trian.lr", [1.0], "did you mean train?"),
        ("capture.top_k", [8], "all trials share what lies outside of student, objectives, train"),
        ("train.epochs", [1], "the budget says how long a trial is"),
        ("train.workers", [1], "it does not change what comes out"),
        ("train.lr", ["fast"], "unable to parse string as a number"),
    ],
)
def test_what_cannot_be_searched_is_refused(key: str, values: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search_space(configured({key: {"choice": values}}))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"tune.search: {key}")


def test_values_that_do_not_fit_together_are_shown() -> None:
    cut = "student.from_teacher"
    search = {f"{cut}.layers": {"choice": [2, [0, 1]]}, f"{cut}.choose_layers": {"choice": ["uniform", "first_last"]}}
    config = configured(search)
    with pytest.raises(
        ConfigError, match=rf"{cut}.layers=.*\[0, 1\].*, {cut}.choose_layers=first_last cannot be together"
    ):
        draw_trials(config, search_space(config))


def test_the_default_search_takes_what_the_configuration_has() -> None:
    space = search_space(configured(capture={"temperatures": [2.0]}))
    assert space["train.lr"].log_uniform == (7.5e-5, 1.2e-3)
    assert space["objectives.sequence_ce.weight"].log_uniform == (0.02, 0.5)
    assert space["objectives.forward_kl.temperature"].choice == (1.0, 2.0)
    assert space["student.from_teacher.choose_layers"].choice == ("uniform", "block_influence")
    assert list(search_space(configured(student={"model": "other"}))) == ["train.lr", "objectives.sequence_ce.weight"]
