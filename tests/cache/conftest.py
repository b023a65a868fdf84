"""Records made of random but possible teacher rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.cache.index import shard_folder
from llmdistill.cache.shard import write_shard
from llmdistill.types import CaptureSpec, HeadTailRows, Record, SampledRows, TeacherRows, TopKRows

DRAWS, HEAD = 50, 8


def make_spec(kind: str = "top_k", **changes: Any) -> CaptureSpec:
    top_k = {"top_k": 8} if kind == "top_k" else {"top_k": 0, "draws": DRAWS}
    head = {"head_mass": 0.9, "head_size": HEAD} if kind == "head_tail" else {}
    fields = {"mode": "score", "kind": kind, "vocabulary_size": 1000, "teacher": "teacher", "tokenizer": "tokenizer"}
    return CaptureSpec(**{**fields, "engine": "fake", "dtype": "float32", **top_k, **head, **changes})


def make_rows(spec: CaptureSpec, rows: int, rng: np.random.Generator) -> TeacherRows:
    """Rows of a random distribution over at most 4,096 of the vocabulary's ids, the last one among them."""
    size = min(spec.vocabulary_size, 4096)
    ids_V = np.sort(rng.choice(spec.vocabulary_size - 1, size - 1, replace=False)).astype(np.int32)
    ids_V = np.append(ids_V, np.int32(spec.vocabulary_size - 1))
    logits = rng.normal(0, 3, (rows, size))
    logprobs_RV = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    common: dict[str, Any] = {
        "actual_logprobs_R": logprobs_RV[:, 0].astype(np.float32),
        "entropy_R": -(np.exp(logprobs_RV) * logprobs_RV).sum(1).astype(np.float32),
    }
    if spec.temperatures:
        common["logsumexp_RJ"] = np.stack(
            [np.log(np.exp(logprobs_RV / t).sum(1)) for t in spec.temperatures], axis=1
        ).astype(np.float32)
    order = np.argsort(-logprobs_RV, axis=1)
    if spec.kind == "top_k":
        best = order[:, : spec.top_k]
        return TopKRows(ids_V[best], np.take_along_axis(logprobs_RV, best, 1).astype(np.float32), **common)
    ids, counts, entries, heads, logprobs = [], [], [], [], []
    for row in range(rows):
        p_V = np.exp(logprobs_RV[row])
        head = order[row, :0]
        if spec.kind == "head_tail":
            mass = np.cumsum(p_V[order[row, : spec.head_size]])
            head = order[row, : min(int((mass < spec.head_mass).sum()) + 1, spec.head_size)]
            logprobs.append(logprobs_RV[row, head].astype(np.float32))
            p_V[head] = 0
        rest = p_V.sum()
        draws = rng.choice(size, int(np.ceil(spec.draws * min(rest, 1.0) - 1e-9)), p=p_V / rest)
        drawn, count = np.unique(draws, return_counts=True)
        ids += [ids_V[head], ids_V[drawn]]
        counts.append(count.astype(np.int32))
        entries.append(len(drawn))
        heads.append(len(head))
    flat = np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)
    counts_F = np.concatenate([np.zeros(0, np.int32), *counts])
    if spec.kind == "sampled":
        return SampledRows(flat, counts_F, np.array(entries, np.int32), **common)
    logprobs_H = np.concatenate([np.zeros(0, np.float32), *logprobs])
    return HeadTailRows(flat, np.array(heads, np.int32), np.array(entries, np.int32), logprobs_H, counts_F, **common)


def make_records(spec: CaptureSpec, count: int, seed: int = 0, longest: int = 24) -> list[Record]:
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        tokens = int(rng.integers(2, longest))
        supervised = np.arange(tokens) >= int(rng.integers(1, tokens + 1))
        rows = int(supervised.sum())
        hidden = rng.normal(size=(len(spec.hidden_layers), rows, 6)).astype(np.float32) if spec.hidden_layers else None
        records.append(
            Record(
                rng.bytes(16),
                rng.integers(0, spec.vocabulary_size, tokens).astype(np.int32),
                supervised,
                make_rows(spec, rows, rng),
                ("stop", "length", "scored")[int(rng.integers(3))],
                int(rng.integers(2**63)),
                ("", "news", "code")[int(rng.integers(3))],
                hidden,
            )
        )
    return records


def write_cache(cache: Path, records: Sequence[Record], spec: CaptureSpec, per_shard: int = 4, **options: Any) -> None:
    for start in range(0, len(records), per_shard):
        write_shard(shard_folder(cache), records[start : start + per_shard], spec, "fake 1", **options)


class Make:
    """The makers as one fixture, since test folders are no packages."""

    spec = staticmethod(make_spec)
    rows = staticmethod(make_rows)
    records = staticmethod(make_records)
    cache = staticmethod(write_cache)


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def small_cache(tmp_path: Path, make: type[Make]) -> Callable[..., tuple[Path, list[Record], CaptureSpec]]:
    def build(kind: str = "top_k", count: int = 12, **changes: Any) -> tuple[Path, list[Record], CaptureSpec]:
        spec = make.spec(kind, **changes)
        records = make.records(spec, count)
        make.cache(tmp_path / "cache", records, spec)
        return tmp_path / "cache", records, spec

    return build
