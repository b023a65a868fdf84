"""One text in the tokens of two tokenizers: which runs of tokens on both sides spell the same.

Offsets are those of whole characters, so a character that several tokens spell lies in one chunk. They are found by
decoding token after token and not by encoding the text again: what a model writes need not be what its tokenizer would
have made of that text.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.types import ChunkRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no text."""


@dataclass(frozen=True)
class Spelling:
    """What some tokens spell."""

    text: str
    """Without bytes at the end that are no whole character."""
    start: int
    """Characters of it before the first token."""
    ends: tuple[int | None, ...]
    """Of each token: length of the text up to its end; None where that is within a character, or it adds nothing."""


def spelling(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], before: Sequence[int] = ()) -> Spelling:
    """What tokens spell; special tokens spell nothing.

    Args:
        tokenizer: theirs.
        token_ids: the tokens.
        before: tokens in front of them, whose text is the beginning of the text.

    """
    from tokenizers.decoders import DecodeStream

    backend, stream = tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=True)
    parts = [stream.step(backend, token) or "" for token in (*before, *token_ids)]
    lengths = list(itertools.accumulate(map(len, parts), initial=0))
    first = len(before)
    ends = tuple(length if part else None for length, part in zip(lengths[first + 1 :], parts[first:], strict=True))
    return Spelling("".join(parts), lengths[first], ends)


def align(teacher: Spelling, logprobs_R: np.ndarray, student: Spelling) -> ChunkRows:
    """The finest chunks that both sides agree on.

    Args:
        teacher: what its tokens spell.
        logprobs_R: [R of the teacher]: their log-probabilities.
        student: the same text in the student's tokens, at least one.

    Returns:
        chunks over the student's tokens. NaN stands for a chunk whose text is not the same on both sides (then there is
        one chunk, the whole of it) or holds bytes that are no text, and for tokens behind the teacher's last one.

    """
    known: dict[int, float] = {}
    if teacher.text == student.text:
        running = np.cumsum(logprobs_R, dtype=np.float64).tolist()
        totals = zip(teacher.ends, running, strict=True)
        known = {teacher.start: 0.0} | {end: total for end, total in totals if end is not None}
    ends_R = np.array([end is not None and end in known for end in student.ends])
    ends_R[-1] = True
    logprobs, last = [], student.start
    for place in np.flatnonzero(ends_R).tolist():
        end = student.ends[place]
        if end is None or not {last, end} <= known.keys() or _NO_TEXT in student.text[last:end]:
            logprobs.append(np.nan)
        else:
            logprobs.append(known[end] - known[last])
        last = last if end is None else end
    return ChunkRows(ends_R, np.array(logprobs, np.float32))


@dataclass(frozen=True)
class _Run:
    tokenizer: PreTrainedTokenizerBase
    before: list[int]
    body: list[int]
    end: bool
    """An end token follows."""


@dataclass(frozen=True)
class Side:
    """One record as one of the two tokenizers has it."""

    tokenizer: PreTrainedTokenizerBase
    token_ids_N: np.ndarray
    supervised_N: np.ndarray

    def run(self, first: int, stop: int) -> _Run:
        """One of `runs`."""
        ids = self.token_ids_N.tolist()
        end = ids[stop - 1] in special_ids(self.tokenizer)
        return _Run(self.tokenizer, ids[:first], ids[first : stop - end], end)

    def runs(self) -> Iterator[tuple[int, int]]:
        """First token and end of each run of supervised tokens."""
        borders = np.flatnonzero(np.diff(np.concatenate([[0], self.supervised_N.astype(np.int8), [0]])))
        yield from zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True)


def chunk_rows(teacher: Side, logprobs_R: np.ndarray, student: Side, plain_text: bool = False) -> ChunkRows:
    """The chunks of a record: run of supervised tokens after run, end token against end token.

    Args:
        teacher: the record as the teacher has it.
        logprobs_R: log-probabilities of its supervised tokens.
        student: the same conversation or text in the student's tokens.
        plain_text: there is no prompt: the token that nothing predicts is the beginning of the text.

    """
    runs, own_runs = list(teacher.runs()), list(student.runs())
    if len(runs) != len(own_runs):
        return _not_compared(int(student.supervised_N.sum()))
    parts: list[ChunkRows] = []
    first_row = 0
    for run, own_run in zip(runs, own_runs, strict=True):
        count = run[1] - run[0]
        parts += _run(teacher.run(*run), logprobs_R[first_row : first_row + count], student.run(*own_run), plain_text)
        first_row += count
    return ChunkRows(
        np.concatenate([part.ends_R for part in parts]), np.concatenate([part.logprobs_E for part in parts])
    )


def _run(teacher: _Run, logprobs_R: np.ndarray, student: _Run, plain_text: bool) -> Iterator[ChunkRows]:
    if student.body:
        sides = [spelling(run.tokenizer, run.body, run.before if plain_text else ()) for run in (teacher, student)]
        yield align(sides[0], logprobs_R[: len(teacher.body)], sides[1])
    if student.end:
        yield ChunkRows(np.array([True]), np.array([logprobs_R[-1] if teacher.end else np.nan], np.float32))


def _not_compared(rows: int) -> ChunkRows:
    return ChunkRows(np.arange(rows) == rows - 1, np.array([np.nan], np.float32))


@functools.lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens, the end token among them."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | {tokenizer.eos_token_id} - {None})
