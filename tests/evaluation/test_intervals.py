from __future__ import annotations

import math

import numpy as np
import pytest

from llmdistill.evaluation.calibration import BINS, bin_columns, expected_calibration_error, reliability
from llmdistill.evaluation.groups import by_entropy, by_position, by_source
from llmdistill.evaluation.intervals import Bootstrap, exp_ratio, ratio, record_sums


def test_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400)
    low, high = Bootstrap(400, 4000).interval(np.stack([values, np.ones(400)], axis=1), ratio)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(400), rel=0.06)


def test_records_and_not_rows_are_resampled() -> None:
    """Rows that repeat their record's value carry no further information: the interval must not shrink."""
    values = np.random.default_rng(1).normal(size=50)
    once = record_sums(np.arange(50), np.stack([values, np.ones(50)], axis=1), 50)
    rows = np.repeat(np.arange(50), 100)
    often = record_sums(rows, np.stack([values[rows], np.ones(5000)], axis=1), 50)
    bootstrap = Bootstrap(50, 500)
    assert bootstrap.interval(often, ratio) == pytest.approx(bootstrap.interval(once, ratio))


def test_the_same_seed_gives_the_same_interval_and_one_record_gives_none() -> None:
    sums = np.array([[4.0, 2.0], [9.0, 3.0], [1.0, 1.0]])
    assert Bootstrap(3, 100, seed=5).interval(sums, exp_ratio) == Bootstrap(3, 100, seed=5).interval(sums, exp_ratio)
    assert Bootstrap(3, 100).interval(np.array([[4.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), ratio) is None


def test_resamples_without_rows_do_not_count() -> None:
    """A group that only two of 60 records have is missing from many resamples."""
    sums = np.zeros((60, 2))
    sums[:2] = [[2.0, 1.0], [4.0, 1.0]]
    assert Bootstrap(60, 300).interval(sums, ratio) == (2.0, 4.0)


def test_calibration_by_hand() -> None:
    """Four rows at 0.9 of which three are right, two at 0.3 of which none is: (4·|.75-.9| + 2·|0-.3|) / 6 = 0.2."""
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.3, 0.3])
    correct = np.array([1, 1, 1, 0, 0, 0], float)
    totals = bin_columns(confidence, correct).sum(axis=0)
    assert expected_calibration_error(totals) == pytest.approx(0.2)
    low, high = reliability(totals)
    assert (low["rows"], low["accuracy"], high["rows"], high["accuracy"]) == (2, 0.0, 4, 0.75)
    assert high["confidence"] == pytest.approx(0.9)
    assert low["from"] < 0.3 <= low["to"]


def test_confidences_at_the_edges_have_a_bin() -> None:
    columns = bin_columns(np.array([0.0, 1.0, 1 / BINS]), np.zeros(3)).reshape(3, 3, BINS)
    assert columns[:, 0].argmax(axis=1).tolist() == [0, BINS - 1, 0]


def test_groups() -> None:
    records = np.array([0, 0, 0, 2, 2])
    assert {name: rows.tolist() for name, rows in by_position(records).items()} == {
        "0": [True, False, False, True, False],
        "1–3": [False, True, True, False, True],
    }
    assert list(by_entropy(np.array([0.0, 0.1, 9.0]))) == ["below 0.1", "0.1–0.5", "4 and more"]
    groups = by_source(records, ["b", "a", "a"])
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "a": [False, False, False, True, True],
        "b": [True, True, True, False, False],
    }
