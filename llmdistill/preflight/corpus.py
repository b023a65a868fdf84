"""The one place of this room that knows the prompts room: a sample of the corpus, rendered as a run would render it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.preflight.facts import CorpusFacts
from llmdistill.types import CaptureSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCANNED_ROWS = 20_000
"""Rows that are read; a larger corpus is judged by its beginning, and counted for some seconds."""
SAMPLED_ROWS = 1_000
"""Rows that are rendered, at equal distances among those that were read."""
_UNLIMITED = 1 << 40
_COUNTING_SECONDS = 8.0
_Row = TypeVar("_Row")


def sample_corpus(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> CorpusFacts:
    """Render a sample; too long rows stay in it, so that they can be counted.

    Raises:
        DataError: a file cannot be read, or no row of the sample can be used.

    """
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.requests import make_requests

    rows = read_prompts(config.prompts)
    scanned = list(itertools.islice(rows, SCANNED_ROWS))
    more, exact = _count(rows)
    picked = _spread(scanned, SAMPLED_ROWS)
    # One request a prompt, and none refused for its length.
    asked = {
        name: (
            teacher.model_copy(
                update={
                    "sampling": teacher.sampling.model_copy(update={"samples": 1}),
                    "max_model_len": _UNLIMITED,
                }
            ),
            spec,
        )
        for name, (teacher, spec) in _asked(config, tokenizer).items()
    }
    corpus = make_requests(picked, tokenizer, config.prompts, asked)
    requests = corpus.requests
    return CorpusFacts(
        rows=len(scanned) + more,
        exact=exact,
        sampled=len(picked),
        lengths=tuple(len(request.token_ids) for request in requests),
        supervised=tuple(sum(request.supervised or ()) for request in requests),
        sources=tuple(request.source for request in requests),
        rejected=tuple((row.source, row.reason) for row in corpus.rejected),
        teachers=tuple(request.teacher for request in requests),
    )


def sample_token_ids(config: RunConfig, tokenizer: PreTrainedTokenizerBase, count: int) -> list[tuple[list[int], int]]:
    """Token ids of `count` usable rows and how many of them come before the first supervised one."""
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.requests import make_requests

    picked = _spread(list(itertools.islice(read_prompts(config.prompts), SCANNED_ROWS)), count)
    requests = make_requests(picked, tokenizer, config.prompts, _asked(config, tokenizer)).requests
    return [
        (list(request.token_ids), len(request.token_ids) - sum(request.supervised or ()))
        for request in {request.token_ids: request for request in requests}.values()
    ]


def _asked(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[TeacherConfig, CaptureSpec]]:
    """The teachers with specs that differ by their names alone: fingerprints need the weights."""
    return {
        name: (teacher, CaptureSpec(config.prompts.mode, "top_k", 1, len(tokenizer), name, "", "", ""))
        for name, teacher in config.asked_teachers.items()
    }


def _spread(rows: Sequence[_Row], count: int) -> list[_Row]:
    """At most `count` of the rows, at equal distances."""
    return list(rows) if len(rows) <= count else [rows[index * len(rows) // count] for index in range(count)]


def _count(rows: Iterator[object]) -> tuple[int, bool]:
    """How many rows follow, and whether these are all: a large corpus is counted for some seconds only."""
    until, found = time.monotonic() + _COUNTING_SECONDS, 0
    for found, _ in enumerate(rows, start=1):
        if found % 1000 == 0 and time.monotonic() > until:
            return found, False
    return found, True
