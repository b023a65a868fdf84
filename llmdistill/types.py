"""The records that travel between the rooms, the legend of tensor shapes, and the alignment rule.

Shape suffixes used in names:

    B  sequences in a batch            T  positions of a (packed) sequence
    N  tokens of one or more records   R  supervised rows (teacher distributions)
    K  kept entries of a row           V  vocabulary
    D  hidden width

The alignment rule: **row t holds the teacher's distribution of token t+1.** A prompt of P tokens followed by generated
tokens y_0 … y_{n-1} has y_j at position P+j, and the row that predicts it is P+j-1. The first token of a record is
predicted by nothing and can never be supervised. The shift is made once, in `teacher/extract.py`; everything after
it speaks of rows only. `Record.supervised_N[i]` says that *token* i is predicted by a stored row, and the stored rows
are in the order of those tokens, so the row of the j-th supervised token i sits at position i-1 of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

RECORD_KEY_BYTES = 16
"""A record's key is the first 16 bytes of a blake2b hash (see `prompts/keys.py`)."""

FINISH_REASONS = ("scored", "stop", "length")
"""`scored`: existing text; `stop`: the teacher ended its response; `length`: it was cut at `max_new_tokens`."""


@dataclass(frozen=True)
class Request:
    """One sequence that a teacher is asked about.

    In `generate` mode the teacher continues `token_ids`; in `score` mode it is asked for its distributions at the
    tokens that `supervised` marks.
    """

    key: bytes
    token_ids: tuple[int, ...]
    source: str
    """File and line that the request came from, for messages and reports."""
    seed: int | None = None
    """Sampling seed, `generate` mode only."""
    supervised: tuple[bool, ...] | None = None
    """One flag per token, `score` mode only; the first is always False."""
    split: int = 0
    """Hash of the prompt, 0 … 2^64-1: decides on which side of a held-out split the record falls."""


@dataclass(frozen=True)
class TopKRows:
    """The k most likely tokens of each supervised row.

    Log-probabilities are at temperature 1 over the full real vocabulary, sorted from the most likely down.
    """

    ids_RK: np.ndarray
    """int32 [R, K], all different within a row."""
    logprobs_RK: np.ndarray
    """float32 [R, K]."""
    actual_logprobs_R: np.ndarray
    """float32 [R]: log-probability of the token that really follows, also when it is outside the kept set."""


@dataclass(frozen=True)
class Record:
    """One sequence and what the teacher said at each supervised position."""

    key: bytes
    token_ids_N: np.ndarray
    """int32 [N]: prompt and response."""
    supervised_N: np.ndarray
    """bool [N]: this token is predicted by a stored row; `supervised_N.sum() == R`, `supervised_N[0]` is False."""
    rows: TopKRows
    finish_reason: str
    split: int = 0
    """Hash of the prompt, see `Request.split`."""

    def __post_init__(self) -> None:
        rows = int(self.supervised_N.sum())
        assert len(self.key) == RECORD_KEY_BYTES
        assert self.token_ids_N.shape == self.supervised_N.shape and not self.supervised_N[:1].any()
        assert self.rows.ids_RK.shape == self.rows.logprobs_RK.shape and len(self.rows.ids_RK) == rows
        assert self.rows.actual_logprobs_R.shape == (rows,)
        assert self.finish_reason in FINISH_REASONS


@dataclass(frozen=True)
class CaptureSpec:
    """What a cache holds and who made it: equal specs may share a cache, others may not (design: content-addressed).

    Every field is a fact about the stored numbers; how they were scheduled (batching, replicas, shard sizes) is not
    in here, so that it can change freely.
    """

    mode: str
    """`generate` or `score`."""
    kind: str
    """The capture kind; `top_k` so far."""
    top_k: int
    vocabulary_size: int
    """Ids are below this; the real vocabulary, without padding rows of the head."""
    teacher: str
    """Fingerprint of the teacher's configuration and weights."""
    tokenizer: str
    """Fingerprint of vocabulary, added tokens and chat template."""
    engine: str
    """`vllm` or `fake`."""
    dtype: str
    """Precision of the teacher's forward pass."""
    sampling: dict[str, float | int] = field(default_factory=dict)
    """Temperature, top_p, max_new_tokens and so on; empty in `score` mode."""
