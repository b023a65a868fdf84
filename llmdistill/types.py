"""The records that travel between the rooms, the legend of tensor shapes, and the alignment rule.

Shape suffixes used in names:

    B  sequences in a batch            T  positions of a (packed) sequence
    N  tokens of one or more records   R  supervised rows (teacher distributions)
    K  kept entries of a row           V  vocabulary
    D  hidden width                    E  entries of all rows, flat
    J  extra temperatures              L  layers

The alignment rule: **row t holds the teacher's distribution of token t+1.** A prompt of P tokens followed by generated
tokens y_0 … y_{n-1} has y_j at position P+j, and the row that predicts it is P+j-1. The first token of a record is
predicted by nothing and can never be supervised. The shift is made once, in `teacher/extract.py`; everything after
it speaks of rows only. `Record.supervised_N[i]` says that *token* i is predicted by a stored row, and the stored rows
are in the order of those tokens, so the row of the j-th supervised token i sits at position i-1 of the sequence.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RECORD_KEY_BYTES = 16
"""A record's key is the first 16 bytes of a blake2b hash (see `prompts/keys.py`)."""

FINISH_REASONS = ("scored", "stop", "length")
"""`scored`: existing text; `stop`: the teacher ended its response; `length`: it was cut at `max_new_tokens`."""

_STUDENT_PREFIX = "student:"
_STUDENT_SOURCE = re.compile(re.escape(_STUDENT_PREFIX) + r"(\d+)")


def student_source(step: int) -> str:
    """`Record.source` of text that the student wrote after so many optimizer steps."""
    return f"{_STUDENT_PREFIX}{step}"


def student_step(source: str) -> int | None:
    """Optimizer steps of the student that wrote a record, from its `Record.source`; None where another wrote it."""
    found = _STUDENT_SOURCE.fullmatch(source)
    return None if found is None else int(found[1])


def written_by_student(source: str) -> bool:
    """Whether the student wrote a record, rather than the teacher or the corpus."""
    return student_step(source) is not None


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
    source_name: str = ""
    """What the corpus source is called, see `Record.source`."""
    teacher: str = ""
    """Name of the teacher that is to answer, in the configuration."""


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
    entropy_R: np.ndarray | None = None
    """float32 [R]: entropy of the full distribution in nats; None where the engine cannot tell."""
    logsumexp_RJ: np.ndarray | None = None
    """float32 [R, J]: log Σ_v exp(logprob_v/τ) over the full vocabulary, for each of `CaptureSpec.temperatures`."""


@dataclass(frozen=True)
class SampledRows:
    """Tokens drawn with replacement from each row's distribution (Random Sampling KD, arXiv 2503.16870).

    Entries are flat, row after row; E = Σ entries_R.
    """

    ids_E: np.ndarray
    """int32 [E], all different within a row."""
    counts_E: np.ndarray
    """int32 [E]: how often each was drawn, at least 1; the counts of a row sum to the number of draws."""
    entries_R: np.ndarray
    """int32 [R]: entries of each row, at least 1."""
    actual_logprobs_R: np.ndarray
    """float32 [R], as in `TopKRows`."""
    entropy_R: np.ndarray | None = None
    """float32 [R], as in `TopKRows`."""
    logsumexp_RJ: np.ndarray | None = None
    """float32 [R, J], as in `TopKRows`."""


@dataclass(frozen=True)
class HeadTailRows:
    """The exact head of each row, then draws with replacement from the rest.

    A row has its head entries first, from the most likely down, then its drawn ones. With ρ the mass outside the head,
    a drawn entry counted c times stands for ρ·c / Σ counts of the row. E = Σ (heads_R + tails_R), H = Σ heads_R,
    F = Σ tails_R.
    """

    ids_E: np.ndarray
    """int32 [E], all different within a row."""
    heads_R: np.ndarray
    """int32 [R]: head entries of each row, at least 1."""
    tails_R: np.ndarray
    """int32 [R]: drawn entries of each row; 0 only where the head holds everything."""
    head_logprobs_H: np.ndarray
    """float32 [H]: log-probabilities of the head entries."""
    tail_counts_F: np.ndarray
    """int32 [F]: how often each drawn entry was drawn, at least 1."""
    actual_logprobs_R: np.ndarray
    """float32 [R], as in `TopKRows`."""
    entropy_R: np.ndarray | None = None
    """float32 [R], as in `TopKRows`."""
    logsumexp_RJ: np.ndarray | None = None
    """float32 [R, J], as in `TopKRows`."""


@dataclass(frozen=True)
class ChunkRows:
    """The teacher's text in the tokens of another tokenizer: chunks of tokens, and the teacher's probability of each.

    A chunk is the shortest run of rows behind the one before it that spells what a run of the teacher's own tokens
    spells. Every row belongs to one chunk. E = number of chunks.
    """

    ends_R: np.ndarray
    """bool [R]: a chunk ends with this row; True of the last one."""
    logprobs_E: np.ndarray
    """float32 [E]: sum of the teacher's log-probabilities of its own tokens that spell the chunk; NaN where no run of
    them does."""


TeacherRows = TopKRows | SampledRows | HeadTailRows | ChunkRows
"""What a record holds of the teacher, one class for each `CaptureSpec.kind`."""


@dataclass(frozen=True)
class Record:
    """One sequence and what the teacher said at each supervised position."""

    key: bytes
    token_ids_N: np.ndarray
    """int32 [N]: prompt and response."""
    supervised_N: np.ndarray
    """bool [N]: this token is predicted by a stored row; `supervised_N.sum() == R`, `supervised_N[0]` is False."""
    rows: TeacherRows
    finish_reason: str
    split: int = 0
    """Hash of the prompt, see `Request.split`."""
    source: str = ""
    """What the configuration calls the corpus source (`SourceConfig.known_as`), for weights per source; or
    `student_source` of text that the student wrote."""
    hidden_LRD: np.ndarray | None = None
    """float32 [L, R, D]: hidden states at the rows' positions, for each of `CaptureSpec.hidden_layers`."""

    def __post_init__(self) -> None:
        rows = int(self.supervised_N.sum())
        assert len(self.key) == RECORD_KEY_BYTES
        assert self.finish_reason in FINISH_REASONS
        assert self.token_ids_N.shape == self.supervised_N.shape
        assert not self.supervised_N[:1].any()
        if isinstance(self.rows, ChunkRows):
            assert self.rows.ends_R.shape == (rows,)
            assert self.rows.ends_R[-1:].all()
            assert self.rows.logprobs_E.shape == (self.rows.ends_R.sum(),)
            return
        assert self.rows.actual_logprobs_R.shape == (rows,)
        if isinstance(self.rows, TopKRows):
            assert self.rows.ids_RK.shape == self.rows.logprobs_RK.shape
            assert len(self.rows.ids_RK) == rows
        elif isinstance(self.rows, SampledRows):
            assert self.rows.entries_R.shape == (rows,)
            assert self.rows.ids_E.shape == self.rows.counts_E.shape == (self.rows.entries_R.sum(),)
        else:
            assert self.rows.heads_R.shape == self.rows.tails_R.shape == (rows,)
            assert self.rows.ids_E.shape == (self.rows.heads_R.sum() + self.rows.tails_R.sum(),)
            assert self.rows.head_logprobs_H.shape == (self.rows.heads_R.sum(),)
            assert self.rows.tail_counts_F.shape == (self.rows.tails_R.sum(),)


@dataclass(frozen=True)
class CaptureSpec:
    """What a cache holds and who made it: equal specs may share a cache, and such as differ in who made it alone
    (`cache/captures.py`); others may not (design: content-addressed).

    Every field is a fact about the stored numbers; how they were scheduled (batching, replicas, shard sizes) is not
    in here, so that it can change freely.
    """

    mode: str
    """`generate` or `score`."""
    kind: str
    """`top_k`, `sampled` or `head_tail`; `chunks`: text of another cache in other tokens, see `ChunkRows`."""
    top_k: int
    """Entries of a row of `top_k`; 0 for the other kinds."""
    vocabulary_size: int
    """Ids are below this; the real vocabulary, without padding rows of the head."""
    teacher: str
    """Fingerprint of the teacher's configuration and weights."""
    tokenizer: str
    """Fingerprint of vocabulary, added tokens and chat template."""
    engine: str
    """`vllm`, `huggingface`, `openai` (a server) or `fake`."""
    dtype: str
    """Precision of the teacher's forward pass."""
    sampling: dict[str, float | int] = field(default_factory=dict)
    """Temperature, top_p, max_new_tokens and so on; empty in `score` mode."""
    temperatures: tuple[float, ...] = ()
    """Temperatures other than 1 whose log-sum-exp is kept."""
    logprobs: str = "u8"
    """How log-probabilities are stored: `u4`, `u8` or `u12` (companded, so many bits) or `f16`."""
    draws: int = 0
    """Draws of a row of `sampled`; N of the ⌈N·ρ⌉ draws of a row of `head_tail`; 0 for `top_k`."""
    head_mass: float = 0.0
    """`head_tail`: the head ends where its mass reaches this, …"""
    head_size: int = 0
    """… or with so many entries."""
    hidden_layers: tuple[int, ...] = ()
    """Layers whose hidden states lie in sidecar shards; 0 is the embedding's output."""
    hidden_format: str = "bf16"
    """`bf16`, or `int8` with a scale per row."""
    derived_from: str = ""
    """`chunks`: fingerprint of the capture whose text was tokenized again, and of how its prompts were rendered."""

    def __post_init__(self) -> None:
        # Specs come back from JSON, which knows no tuples; equality must not depend on that.
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        object.__setattr__(self, "hidden_layers", tuple(self.hidden_layers))

    def facts(self) -> dict[str, Any]:
        """The fields as plain data. One that only `chunks` has is left out elsewhere: hashes of specs must not move."""
        return {name: value for name, value in asdict(self).items() if name != "derived_from" or value}
