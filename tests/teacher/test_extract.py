"""The traps of reading vLLM's output: the first token, the shift, the actual token that appears twice."""

from dataclasses import dataclass

import numpy as np
import pytest

from llmdistill.errors import EngineError
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.extract import rows_of_prompt, rows_of_response


@dataclass
class Flat:
    start_indices: list[int]
    end_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


def flat(positions: list[list[tuple[int, float]]]) -> Flat:
    result = Flat([], [], [], [])
    for entries in positions:
        result.start_indices.append(len(result.token_ids))
        result.token_ids += [token for token, _ in entries]
        result.logprobs += [logprob for _, logprob in entries]
        result.end_indices.append(len(result.token_ids))
    return result


PLAIN = Columns("top_k", vocabulary_size=10, top_k=2, statistics=False)
TOKEN_6 = [(6, -0.5), (6, -0.5), (5, -1.5)]  # the actual token is among the two most likely
TOKEN_9 = [(9, -4.0), (5, -0.25), (6, -2.0)]  # rank 57: outside of them


def test_prompt_of_three_tokens_has_two_rows_and_row_t_predicts_token_t_plus_1() -> None:
    rows = rows_of_prompt(flat([[], TOKEN_6, TOKEN_9]), [4, 6, 9], [False, True, True], PLAIN)
    assert rows.ids_RK.tolist() == [[6, 5], [5, 6]]
    assert rows.actual_logprobs_R.tolist() == [-0.5, -4.0]
    assert rows.logprobs_RK.dtype == np.float32


def test_only_supervised_rows_are_kept() -> None:
    rows = rows_of_prompt(flat([[], TOKEN_6, TOKEN_9]), [4, 6, 9], [False, False, True], PLAIN)
    assert rows.ids_RK.tolist() == [[5, 6]]


def test_response_has_a_row_per_token() -> None:
    rows = rows_of_response(flat([TOKEN_6, TOKEN_9]), [6, 9], PLAIN)
    assert rows.ids_RK.tolist() == [[6, 5], [5, 6]]
    assert rows.logprobs_RK[1].tolist() == [-0.25, -2.0]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([TOKEN_6, TOKEN_6, TOKEN_9], "first token"),
        ([[], TOKEN_6], "2 tokens need"),
        ([[], TOKEN_6, TOKEN_9[:2]], "as many lists of 3"),
        ([[], TOKEN_9, TOKEN_6], "token 1 was 6"),
        ([[], TOKEN_6, [(9, -4.0), (5, -2.0), (6, -0.25)]], "falling order"),
    ],
)
def test_impossible_output_is_refused(positions, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        rows_of_prompt(flat(positions), [4, 6, 9], [False, True, True], PLAIN)
