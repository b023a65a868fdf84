"""The one place where an engine's output becomes rows, and so the one place where positions shift by one.

vLLM lists log-probabilities per *token*: entry i of a prompt (or of a response) describes the distribution that token i
was drawn from. Row t is the distribution of token t+1, hence entry i is row i-1 of the sequence. Stored rows are kept
in the order of the supervised tokens (see `types.py`), which is what the functions below return.

Flat log-probabilities with k asked for hold k+1 entries a token: first the actual token, then the k most likely ones.
The actual token may therefore stand there twice. The first token of a prompt has no entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmdistill.errors import EngineError
from llmdistill.types import TopKRows


class FlatLogprobs(Protocol):
    """The part of vLLM's `FlatLogprobs` that is read here."""

    start_indices: list[int]
    end_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


def rows_of_response(flat: FlatLogprobs, response_ids: Sequence[int], k: int) -> TopKRows:
    """Rows of a generated response: one per token of it.

    Raises:
        EngineError: the entries are not k+1 a token, or not those of these tokens.

    """
    return _rows(flat, first=0, token_ids=np.asarray(response_ids), k=k)


def rows_of_prompt(flat: FlatLogprobs, token_ids: Sequence[int], supervised: Sequence[bool], k: int) -> TopKRows:
    """Rows of the supervised tokens of a scored sequence.

    Args:
        flat: log-probabilities of all tokens of the sequence; the first has none.
        token_ids: the sequence that was sent.
        supervised: which of its tokens are wanted; never the first.
        k: entries asked for.

    Raises:
        EngineError: the entries are not those of this sequence.

    """
    if not flat.start_indices or flat.end_indices[0] != flat.start_indices[0]:
        raise EngineError("the engine gave log-probabilities for the first token of a prompt, which nothing predicts")
    rows = _rows(flat, first=1, token_ids=np.asarray(token_ids)[1:], k=k)
    wanted = np.asarray(supervised)[1:]
    return TopKRows(rows.ids_RK[wanted], rows.logprobs_RK[wanted], rows.actual_logprobs_R[wanted])


def _rows(flat: FlatLogprobs, first: int, token_ids: np.ndarray, k: int) -> TopKRows:
    lengths = np.asarray(flat.end_indices[first:]) - np.asarray(flat.start_indices[first:])
    if len(lengths) != len(token_ids) or not (lengths == k + 1).all():
        raise EngineError(
            f"{len(token_ids)} tokens need as many lists of {k + 1} log-probabilities; the engine gave {len(lengths)}"
            f" lists of {sorted(set(lengths.tolist()))}"
        )
    start = flat.start_indices[first] if len(lengths) else 0
    ids = np.asarray(flat.token_ids[start:], dtype=np.int32).reshape(-1, k + 1)
    logprobs = np.asarray(flat.logprobs[start:], dtype=np.float32).reshape(-1, k + 1)
    if not (ids[:, 0] == token_ids).all():
        at = int(np.flatnonzero(ids[:, 0] != token_ids)[0])
        raise EngineError(f"token {first + at} was {token_ids[at]}; the engine's log-probability is for {ids[at, 0]}")
    if not (np.diff(logprobs[:, 1:], axis=1) <= 0).all():
        raise EngineError("the engine's most likely tokens are not in falling order")
    return TopKRows(ids[:, 1:], logprobs[:, 1:], logprobs[:, 0])
