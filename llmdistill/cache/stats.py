"""What a cache holds, in numbers, in one pass of bounded memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.captures import MAKERS, common, require_readable_together
from llmdistill.cache.codec import unpack_fields
from llmdistill.cache.index import Capture, capture_of, open_shards, read_captures
from llmdistill.cache.schema import Column
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import DataError
from llmdistill.types import FINISH_REASONS

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_BINS = 1 << 16


class _Histogram:
    """Mean and quantiles of values in low … high, to (high - low)/65,536."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._step = low, (high - low) / _BINS
        self._counts = np.zeros(_BINS, np.int64)
        self._sum = 0.0

    def add(self, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        bins = np.clip((values - self._low) / self._step, 0, _BINS - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=_BINS)
        self._sum += float(values.sum())

    def summary(self) -> dict[str, float] | None:
        """None where there are no values."""
        total = int(self._counts.sum())
        if not total:
            return None
        running = np.cumsum(self._counts)
        quantiles = [self._low + self._step * float(np.searchsorted(running, q * total)) for q in QUANTILES]
        return {"mean": self._sum / total} | {
            f"p{q * 100:g}": value for q, value in zip(QUANTILES, quantiles, strict=True)
        }


def cache_stats(cache: Path | str) -> dict[str, Any]:
    """Counts, bytes, captured mass, entropy, perplexity, lengths, finish reasons, sources and who made it.

    `spec` is what holds of all records, `teachers` says who made how many of them.

    Bytes per row are those of the shard files, everything included, over supervised rows; bytes per token over prompt
    and response tokens.

    Raises:
        DataError: no shard, a damaged one, or shards that cannot be read together.
    """
    captures: list[Capture] = []
    named = read_captures(cache)
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    engines: Counter[str] = Counter()
    mass, entropy, chunk = _Histogram(0, 1), _Histogram(0, 16), _Histogram(0, _BINS)
    tokens, rows, logprobs = _Histogram(0, _BINS), _Histogram(0, _BINS), 0.0
    for shard in open_shards(cache):
        capture_of(shard.spec, captures, named).add(shard)
        require_readable_together(shard.spec, captures[0].spec, str(shard.path))
        summary = shard.summary
        sums.update(shards=1, records=summary.records, tokens=summary.tokens, rows=summary.rows, bytes=summary.bytes)
        engines[shard.metadata["engine_version"]] += summary.records
        reasons.update(FINISH_REASONS[number] for number in shard.stored("finish_reasons").tolist())
        names = shard.sources
        sources.update(names[number] for number in shard.stored("source_ids").tolist())
        columns = {column.name: column for column in shard.columns}
        if "mass" in columns:
            mass.add(shard.column(columns["mass"]))
        if shard.spec.kind == "chunks":
            sizes_E, compared_E, logprobs_E = _chunks(shard, columns)
            chunk.add(sizes_E[compared_E])
            sums.update(chunks=len(sizes_E), compared=int(sizes_E[compared_E].sum()))
            logprobs += float(logprobs_E[compared_E].sum(dtype=np.float64))
        else:
            found = shard.column(columns["entropies"]).astype(np.float32)
            entropy.add(found[~np.isnan(found)])
            logprobs += float(shard.column(columns["actual_logprobs"]).sum(dtype=np.float64))
        tokens.add(np.diff(shard.offsets["token_offsets"]))
        rows.add(np.diff(shard.offsets["row_offsets"]))
        sums["entries"] += _entries(shard)
    if not captures:
        raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
    count, chunked = max(sums["rows"], 1), captures[0].spec.kind == "chunks"
    return {
        **{name: sums[name] for name in ("shards", "records", "tokens", "rows", "bytes")},
        "bytes_per_row": sums["bytes"] / count,
        "bytes_per_token": sums["bytes"] / max(sums["tokens"], 1),
        **(_of_chunks(sums, chunk, logprobs) if chunked else _of_rows(sums, mass, entropy, logprobs)),
        "tokens_per_record": tokens.summary(),
        "rows_per_record": rows.summary(),
        "finish_reasons": dict(reasons),
        "sources": dict(sources),
        "engine_versions": dict(engines),
        "teachers": _teachers(captures),
        "spec": common([capture.spec for capture in captures]).facts(),
    }


def _of_rows(sums: Counter[str], mass: _Histogram, entropy: _Histogram, logprobs: float) -> dict[str, Any]:
    """What a cache of the teacher's rows has alone."""
    count = max(sums["rows"], 1)
    return {
        "entries_per_row": sums["entries"] / count,
        "captured_mass": mass.summary(),
        "entropy": entropy.summary(),
        "mean_actual_logprob": logprobs / count,
    }


def _of_chunks(sums: Counter[str], chunk: _Histogram, logprobs: float) -> dict[str, Any]:
    """What a cache of text in the student's own tokens has alone."""
    return {
        "chunks": sums["chunks"],
        "rows_per_chunk": chunk.summary(),
        "rows_without_teacher": sums["rows"] - sums["compared"],
        "mean_chunk_logprob_per_row": logprobs / max(sums["compared"], 1),
    }


def _chunks(shard: ShardFile, columns: dict[str, Column]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each chunk its rows, whether the teacher's log-probability is known, and that log-probability."""
    ends_R = unpack_fields(shard.column(columns["chunk_ends"]), 1, 0, shard.summary.rows)
    logprobs_E = shard.column(columns["chunk_logprobs"])
    return np.diff(np.flatnonzero(ends_R), prepend=-1), ~np.isnan(logprobs_E), logprobs_E


def _teachers(captures: list[Capture]) -> list[dict[str, Any]]:
    """What each teacher made; of the spec only what may differ."""
    return [
        {
            "name": capture.name,
            **{field: getattr(capture.spec, field) for field in MAKERS},
            **{count: getattr(capture, count) for count in ("shards", "records", "tokens", "rows")},
        }
        for capture in captures
    ]


def _entries(shard: ShardFile) -> int:
    if shard.spec.kind == "top_k":
        return shard.summary.rows * shard.spec.top_k
    return int(shard.offsets["entry_offsets"][-1])
