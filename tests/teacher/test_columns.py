"""Rows from columns: the places of things, and what cannot be right."""

import numpy as np
import pytest

from llmdistill.config.capture import CaptureConfig
from llmdistill.errors import EngineError
from llmdistill.teacher.columns import NOTHING, STATISTIC, Columns
from llmdistill.types import HeadTailRows, SampledRows, TopKRows

TOP_K = Columns("top_k", vocabulary_size=100, top_k=2, temperatures=(2.0,))
SAMPLED = Columns("sampled", vocabulary_size=100, draws=5)
HEAD_TAIL = Columns("head_tail", vocabulary_size=100, draws=4, head_mass=0.9, head_size=3)
X, S = NOTHING, STATISTIC


def rows(columns: Columns, *tokens: list[tuple[int, float]]):
    ids = np.array([[id for id, _ in token] for token in tokens], np.int32)
    values = np.array([[value for _, value in token] for token in tokens], np.float32)
    assert ids.shape[1] == 1 + columns.width
    return columns.rows(ids, values)


def test_top_k_with_statistics_keeps_the_actual_token_apart() -> None:
    found = rows(TOP_K, [(7, -1.0), (S, 1.5), (S, 0.75), (7, -1.0), (9, -1.5)])
    assert isinstance(found, TopKRows)
    assert (found.ids_RK.tolist(), found.logprobs_RK.tolist()) == ([[7, 9]], [[-1.0, -1.5]])
    assert (found.actual_logprobs_R.tolist(), found.entropy_R.tolist(), found.logsumexp_RJ.tolist()) == (
        [-1.0],
        [1.5],
        [[0.75]],
    )


def test_equal_draws_are_counted_row_by_row() -> None:
    found = rows(
        SAMPLED,
        [(7, -1.0), (S, 1.5), (3, 3.0), (3, 7.0), (9, X)],
        [(8, -2.0), (S, 0.5), (9, 9.0), (9, 9.0), (9, X)],  # the last id of the row before comes again
    )
    assert isinstance(found, SampledRows)
    assert found.ids_E.tolist() == [3, 7, 9, 9]
    assert found.counts_E.tolist() == [3, 1, 1, 5]
    assert found.entries_R.tolist() == [3, 1]
    assert found.logsumexp_RJ is None


def test_head_comes_before_tail_in_each_row() -> None:
    found = rows(
        HEAD_TAIL,
        [(7, -1.0), (S, 1.5), (40, -1.0), (20, -1.25), (X, X), (5, 5.0), (8, X)],
        [(8, -2.0), (S, 0.5), (8, -0.5), (X, X), (X, X), (X, X), (X, X)],
        [(9, -2.0), (S, 0.5), (9, -0.5), (1, -2.0), (2, -3.0), (8, X), (X, X)],
    )
    assert isinstance(found, HeadTailRows)
    assert found.ids_E.tolist() == [40, 20, 5, 8, 8, 9, 1, 2, 8]
    assert (found.heads_R.tolist(), found.tails_R.tolist()) == ([2, 1, 3], [2, 0, 1])
    assert found.head_logprobs_H.tolist() == [-1.0, -1.25, -0.5, -0.5, -2.0, -3.0]
    assert found.tail_counts_F.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (TOP_K, [(7, -1.0), (7, -1.0), (9, -1.5), (4, -2.0), (5, -3.0)], "where entropies were asked for"),
        (TOP_K, [(7, -1.0), (S, 1.5), (S, 0.75), (7, -2.0), (9, -1.5)], "falling order"),
        (TOP_K, [(7, -1.0), (S, 1.5), (S, 0.75), (7, -1.0), (100, -1.5)], "not all of the 100"),
        (SAMPLED, [(7, -1.0), (S, 1.5), (3, 3.0), (3, 7.0), (X, X)], "not 5 sorted ids"),
        (SAMPLED, [(7, -1.0), (S, 1.5), (3, 3.0), (7, 3.0), (9, X)], "not 5 sorted ids"),
        (SAMPLED, [(7, -1.0), (S, 1.5), (3, 3.0), (3, 7.0), (100, X)], "not 5 sorted ids"),
        (HEAD_TAIL, [(7, -1.0), (S, 1.5), (40, -1.0), (20, -0.5), (X, X), (5, 5.0), (8, X)], "falling order"),
        (HEAD_TAIL, [(7, -1.0), (S, 1.5), (40, -1.0), (X, X), (X, X), (X, 5.0), (8, X)], "not 4 sorted ids"),
    ],
)
def test_impossible_columns_are_the_engines_fault(columns: Columns, row: list, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        rows(columns, row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([(100, -1.0), (S, 1.5), (S, 0.75), (7, -1.0), (9, -1.5)], "token 100 is none of the tokenizer's 100"),
        ([(7, -1.0), (S, np.nan), (S, 0.75), (7, -1.0), (9, -1.5)], "are not numbers"),
        ([(7, -1.0), (S, 1.5), (S, 0.75), (7, np.nan), (9, -1.5)], "are not numbers"),
    ],
)
def test_a_row_alone_is_at_fault(row: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(TOP_K, row)


def test_the_layout_follows_the_configuration() -> None:
    assert Columns.of(CaptureConfig(top_k=64), 100, statistics=False).width == 64
    assert Columns.of(CaptureConfig(top_k=64), 100).width == 65
    assert Columns.of(CaptureConfig(kind="sampled", temperatures=(1.0, 4.0, 2.0)), 100).width == 3 + 25
    assert Columns.of(CaptureConfig(kind="head_tail", draws=51), 100).width == 1 + 8 + 26
    assert Columns.of(CaptureConfig(temperatures=(1.0, 4.0, 2.0)), 100).temperatures == (2.0, 4.0)
