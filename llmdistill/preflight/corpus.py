"""The one place of this room that knows the prompts room: a sample of the corpus, rendered as a run would render it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmdistill.config.run import RunConfig
from llmdistill.preflight.facts import CorpusFacts
from llmdistill.types import CaptureSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCANNED_ROWS = 20_000
"""Rows that are read; a larger corpus is judged by its beginning and the number of its lines."""
SAMPLED_ROWS = 1_000
"""Rows that are rendered, at equal distances among those that were read."""
_UNLIMITED = 1 << 40
_Row = TypeVar("_Row")


def sample_corpus(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> CorpusFacts:
    """Render a sample; too long rows stay in it, so that they can be counted.

    Raises:
        DataError: a file cannot be read, or no row of the sample can be used.

    """
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.render import make_requests

    paths = [source.path for source in config.prompts.sources]
    scanned = list(itertools.islice(read_prompts(paths), SCANNED_ROWS + 1))
    exact = len(scanned) <= SCANNED_ROWS
    scanned = scanned[:SCANNED_ROWS]
    picked = _spread(scanned, SAMPLED_ROWS)
    # One request a prompt, and none refused for its length.
    sampling = config.teacher.sampling.model_copy(update={"samples": 1})
    teacher = config.teacher.model_copy(update={"sampling": sampling, "max_model_len": _UNLIMITED})
    spec = CaptureSpec(config.prompts.mode, "top_k", 1, len(tokenizer), "", "", "", "")
    requests, rejected = make_requests(picked, tokenizer, config.prompts, teacher, spec)
    return CorpusFacts(
        rows=len(scanned) if exact else _count_lines(paths),
        exact=exact,
        sampled=len(picked),
        lengths=tuple(len(request.token_ids) for request in requests),
        supervised=tuple(sum(request.supervised or ()) for request in requests),
        sources=tuple(request.source for request in requests),
        rejected=tuple((row.source, row.reason) for row in rejected),
    )


def sample_token_ids(config: RunConfig, tokenizer: PreTrainedTokenizerBase, count: int) -> list[tuple[list[int], int]]:
    """Token ids of `count` usable rows and how many of them come before the first supervised one."""
    from llmdistill.prompts.corpus import read_prompts
    from llmdistill.prompts.render import make_requests

    paths = [source.path for source in config.prompts.sources]
    picked = _spread(list(itertools.islice(read_prompts(paths), SCANNED_ROWS)), count)
    spec = CaptureSpec(config.prompts.mode, "top_k", 1, len(tokenizer), "", "", "", "")
    requests, _ = make_requests(picked, tokenizer, config.prompts, config.teacher, spec)
    return [
        (list(request.token_ids), len(request.token_ids) - sum(request.supervised or ()))
        for request in {request.token_ids: request for request in requests}.values()
    ]


def _spread(rows: Sequence[_Row], count: int) -> list[_Row]:
    """At most `count` of the rows, at equal distances."""
    return list(rows) if len(rows) <= count else [rows[index * len(rows) // count] for index in range(count)]


def _count_lines(paths: Iterable[str]) -> int:
    lines = 0
    for path in paths:
        with Path(path).open("rb") as stream:
            lines += sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 22), b""))
    return lines
