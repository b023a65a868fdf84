"""The one place where an engine's output becomes rows, and so the one place where positions shift by one.

vLLM lists log-probabilities per *token*: entry i of a prompt (or of a response) describes the distribution that token i
was drawn from. Row t is the distribution of token t+1, hence entry i is row i-1 of the sequence. Stored rows are kept
in the order of the supervised tokens (see `types.py`), which is what the functions below return.

Each token's entry is one row of columns as `columns.py` lays them out: first the actual token, which with `top_k` may
stand among the most likely ones again. The first token of a prompt has no entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmdistill.errors import EngineError
from llmdistill.teacher.columns import Columns
from llmdistill.types import TeacherRows


class FlatLogprobs(Protocol):
    """The part of vLLM's `FlatLogprobs` that is read here."""

    start_indices: list[int]
    end_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


def rows_of_response(flat: FlatLogprobs, response_ids: Sequence[int], columns: Columns) -> TeacherRows:
    """Rows of a generated response: one per token of it.

    Raises:
        ValueError: a token is none of the vocabulary, or the teacher computed NaN.
        EngineError: the entries are not those of these tokens, or not laid out as asked.

    """
    return columns.rows(*_columns(flat, first=0, token_ids=np.asarray(response_ids), width=columns.width))


def rows_of_prompt(
    flat: FlatLogprobs, token_ids: Sequence[int], supervised: Sequence[bool], columns: Columns
) -> TeacherRows:
    """Rows of the supervised tokens of a scored sequence.

    Args:
        flat: log-probabilities of all tokens of the sequence; the first has none.
        token_ids: the sequence that was sent.
        supervised: which of its tokens are wanted; never the first.
        columns: the layout asked for.

    Raises:
        ValueError: a token is none of the vocabulary, or the teacher computed NaN.
        EngineError: the entries are not those of this sequence, or not laid out as asked.

    """
    if not flat.start_indices or flat.end_indices[0] != flat.start_indices[0]:
        raise EngineError("the engine gave log-probabilities for the first token of a prompt, which nothing predicts")
    ids_RW, values_RW = _columns(flat, first=1, token_ids=np.asarray(token_ids)[1:], width=columns.width)
    wanted = np.asarray(supervised)[1:]
    return columns.rows(ids_RW[wanted], values_RW[wanted])


def _columns(flat: FlatLogprobs, first: int, token_ids: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and values float32 [R, 1 + width]."""
    lengths = np.asarray(flat.end_indices[first:]) - np.asarray(flat.start_indices[first:])
    if len(lengths) != len(token_ids) or not (lengths == width + 1).all():
        raise EngineError(
            f"{len(token_ids)} tokens need as many lists of {width + 1} log-probabilities; the engine gave"
            f" {len(lengths)} lists of {sorted(set(lengths.tolist()))}"
        )
    start = flat.start_indices[first] if len(lengths) else 0
    ids_RW = np.asarray(flat.token_ids[start:], dtype=np.int32).reshape(-1, width + 1)
    values_RW = np.asarray(flat.logprobs[start:], dtype=np.float32).reshape(-1, width + 1)
    if not (ids_RW[:, 0] == token_ids).all():
        at = int(np.flatnonzero(ids_RW[:, 0] != token_ids)[0])
        raise EngineError(
            f"token {first + at} was {token_ids[at]}; the engine's log-probability is for {ids_RW[at, 0]}"
        )
    return ids_RW, values_RW
