"""The columns of a shard, format version 2. `docs/format.md` describes them for people; this is what the code reads.

S records, N tokens, R supervised rows, K entries a row (`top_k`), E entries (of `chunks`: chunks) in all, H head
entries, F drawn entries behind heads, h high bits of an id (`codec.high_bits`), J extra temperatures. Integers are
little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmdistill.cache.codec import CODE_BITS, LOGPROB_FORMATS, high_bits, packed_size
from llmdistill.errors import DataError
from llmdistill.types import RECORD_KEY_BYTES, CaptureSpec

FORMAT = "llmdistill-cache"
VERSION = "2"
SHARD_SUFFIX = ".safetensors"

Per = Literal["record", "bound", "token", "row", "entry", "head", "tail"]
"""What the first axis counts; `bound`: records + 1."""


@dataclass(frozen=True)
class Column:
    """One tensor of a shard."""

    name: str
    dtype: str
    """numpy's name."""
    per: Per
    width: int | None = None
    """Length of the second axis; None: there is none."""
    bits: int = 0
    """Above 0: fields of so many bits, packed through the whole tensor, uint8."""
    delta: bool = False
    """With zstd: the differences along the second axis (or along the first) modulo 2^8 or 2^16 are compressed."""

    def shape(self, counts: dict[str, int]) -> tuple[int, ...]:
        """The tensor's shape for so many records, tokens, …"""
        first = counts[self.per]
        if self.bits:
            return (packed_size(first, self.bits),)
        return (first,) if self.width is None else (first, self.width)

    @property
    def item(self) -> int:
        """Bytes of one index of the first axis; not for packed fields."""
        return int(np.dtype(self.dtype).itemsize) * (1 if self.width is None else self.width)

    @property
    def blocked(self) -> bool:
        """May be stored as zstd blocks."""
        return self.per not in ("record", "bound") and not self.bits


def columns(spec: CaptureSpec) -> tuple[Column, ...]:
    """Every tensor of an uncompressed shard, in checksum order.

    Raises:
        DataError: the spec names a kind or a format that this program does not know.
    """
    if spec.kind not in ("top_k", "sampled", "head_tail", "chunks") or spec.logprobs not in LOGPROB_FORMATS:
        raise DataError(f"capture kind {spec.kind!r} with log-probabilities as {spec.logprobs!r} is not known")
    high = high_bits(spec.vocabulary_size)
    ragged, head_tail = spec.kind != "top_k", spec.kind == "head_tail"
    found = [
        Column("keys", "uint8", "record", RECORD_KEY_BYTES),
        Column("splits", "uint64", "record"),
        Column("finish_reasons", "uint8", "record"),
        Column("source_ids", "uint16", "record"),
        Column("record_checksums", "uint32", "record"),
        Column("token_offsets", "int64", "bound"),
        Column("row_offsets", "int64", "bound"),
    ]
    if ragged:
        found.append(Column("entry_offsets", "int64", "bound"))
    if head_tail:
        found.append(Column("head_offsets", "int64", "bound"))
    found.append(Column("token_ids_low", "uint16", "token"))
    if high:
        found.append(Column("token_ids_high", "uint8", "token", bits=high))
    found.append(Column("supervised", "uint8", "token", bits=1))
    if spec.kind == "chunks":
        return (*found, Column("chunk_ends", "uint8", "row", bits=1), Column("chunk_logprobs", "float32", "entry"))
    found += [Column("actual_logprobs", "float16", "row"), Column("entropies", "float16", "row")]
    if spec.temperatures:
        found.append(Column("logsumexps", "float32", "row", len(spec.temperatures)))
    if spec.kind != "sampled":
        found.append(Column("mass", "float32", "row"))
    return (*found, *(_ragged_entries(spec, high) if ragged else _top_k_entries(spec, high)))


def _top_k_entries(spec: CaptureSpec, high: int) -> list[Column]:
    k = spec.top_k
    found = [Column("entry_ids_low", "uint16", "row", k)]
    if high:
        found.append(Column("entry_ids_high", "uint8", "row", packed_size(k, high)))
    width = packed_size(k, 4) if spec.logprobs == "u4" else k
    found.append(
        Column("entry_logprobs", _logprob_dtype(spec), "row", width, delta=CODE_BITS.get(spec.logprobs, 0) >= 8)
    )
    return found


def _ragged_entries(spec: CaptureSpec, high: int) -> list[Column]:
    count = "uint8" if spec.draws + spec.head_size < 256 else "uint16"
    found = [Column("entry_ids_low", "uint16", "entry")]
    if high:
        found.append(Column("entry_ids_high", "uint8", "entry", bits=high))
    if spec.kind == "sampled":
        return [*found, Column("entry_counts", count, "row"), Column("draw_counts", count, "entry")]
    logprobs = Column("entry_logprobs", _logprob_dtype(spec), "head", delta=CODE_BITS.get(spec.logprobs, 0) >= 8)
    if spec.logprobs == "u4":
        logprobs = Column("entry_logprobs", "uint8", "head", bits=4)
    return [
        *found,
        Column("head_counts", count, "row"),
        Column("tail_counts", count, "row"),
        logprobs,
        Column("draw_counts", count, "tail"),
    ]


def _logprob_dtype(spec: CaptureSpec) -> str:
    return {"u4": "uint8", "u8": "uint8", "u12": "uint16", "f16": "float16"}[spec.logprobs]
