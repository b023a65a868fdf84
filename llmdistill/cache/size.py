"""How many bytes a cache will take, from its capture spec and counts alone: the sum of `schema.columns`.

Raw sizes are exact but for the header of each shard. Two things are not known before a teacher has spoken, and come
from what SmolLM2-135M-Instruct said on answers and plain text (benchmarks/data/smollm2_rows.npz, 2,082 rows):

- zstd: what each column keeps of its raw size. Ids keep more the more of them there are and the wider the vocabulary;
  differences of log-probabilities keep less the closer the entries of a row lie.
- `sampled` and `head_tail`: how many entries a row has. A teacher that is less sure of itself has more of them: on
  WikiText-2 `head_tail` keeps 22 to 24 entries a row where these rows keep 18.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmdistill.cache.schema import Column, columns
from llmdistill.types import CaptureSpec

HEADER_BYTES = {"none": 1_900, "zstd": 2_600}
"""Length and JSON of a shard, typically."""
DISTINCT_POWER = 0.713
"""N draws with replacement hit about N^0.713 different ids (16.3 of 50)."""
HEAD_SHARE = 0.8
"""Entries of a head as a share of the largest (6.4 of 8)."""
TAIL_SHARE = 0.71
"""Different ids among the draws of a tail, as a share of those that all draws would hit (11.5 of 16.3)."""

_ZSTD_SHARES = {
    "token_ids_low": 0.78,
    "actual_logprobs": 0.95,
    "entropies": 0.90,
    "mass": 0.77,
    "entry_ids_high": 0.29,
    "entry_counts": 0.70,
    "head_counts": 0.32,
    "tail_counts": 0.65,
    "logsumexps": 0.90,
}
_DRAW_COUNT_SHARES = {"sampled": 0.24, "head_tail": 0.12}
_LOGPROB_SHARES = {"u4": (0.66, 0.075), "u8": (1.02, 0.1125), "u12": (0.885, 0.086), "f16": (0.907, 0.054)}
"""share = first - second · log2(entries of a row)."""


@dataclass(frozen=True)
class CacheCounts:
    """How much a cache holds."""

    records: float
    tokens: float
    """Prompts and responses."""
    rows: float
    """Supervised tokens."""
    shards: float


def entries_per_row(spec: CaptureSpec) -> tuple[float, float]:
    """Entries of a row, and how many of them are head entries; of the sampled kinds an estimate."""
    if spec.kind == "top_k":
        return spec.top_k, 0
    distinct = spec.draws**DISTINCT_POWER
    if spec.kind == "sampled":
        return distinct, 0
    heads = max(HEAD_SHARE * spec.head_size, 1)
    return heads + TAIL_SHARE * distinct, heads


def cache_bytes(
    spec: CaptureSpec, counts: CacheCounts, compression: Literal["none", "zstd"] = "none", hidden_width: int = 0
) -> float:
    """Bytes of all shards and of their sidecars.

    Args:
        spec: what is captured.
        counts: how much of it.
        compression: of the shards.
        hidden_width: D of the teacher, where `spec.hidden_layers` names layers.

    Raises:
        DataError: the spec names a kind or a format that this program does not know.

    """
    entries, heads = entries_per_row(spec)
    axes = {
        "record": counts.records,
        "bound": counts.records + counts.shards,
        "token": counts.tokens,
        "row": counts.rows,
        "entry": counts.rows * entries,
        "head": counts.rows * heads,
        "tail": counts.rows * (entries - heads),
    }
    total = counts.shards * HEADER_BYTES[compression]
    for column in columns(spec):
        raw = axes[column.per] * (column.bits / 8 if column.bits else column.item)
        total += raw * (_zstd_share(column, spec, entries, heads) if compression == "zstd" and column.blocked else 1)
    per_layer = hidden_width + 4 if spec.hidden_format == "int8" else 2 * hidden_width
    return total + counts.rows * len(spec.hidden_layers) * per_layer


def _zstd_share(column: Column, spec: CaptureSpec, entries: float, heads: float) -> float:
    if column.name == "entry_ids_low":
        wider = max(math.log2(spec.vocabulary_size / 49_152), 0)
        # Drawn ids come in no order that a compressor could use.
        base = 0.78 if spec.kind == "top_k" else 0.81
        return min(base + 0.0205 * math.log2(max(entries, 1)) + 0.03 * wider, 1.0)
    if column.name == "entry_logprobs":
        first, second = _LOGPROB_SHARES[spec.logprobs]
        return max(first - second * math.log2(max(heads or entries, 1)), 0.1)
    if column.name == "draw_counts":
        return _DRAW_COUNT_SHARES[spec.kind]
    return _ZSTD_SHARES[column.name]
