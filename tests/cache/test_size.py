"""The formula against files that were written: made rows, and real ones of benchmarks/data."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from llmdistill.cache.index import write_index
from llmdistill.cache.size import CacheCounts, cache_bytes
from llmdistill.cache.stats import cache_stats
from llmdistill.types import Record

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FIELDS = ("token_ids_N", "supervised_N", "rows", "finish_reason", "split", "source")


def counts_of(stats: dict[str, Any]) -> CacheCounts:
    return CacheCounts(stats["records"], stats["tokens"], stats["rows"], stats["shards"])


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize("logprobs", ["u8", "u4", "u12", "f16"])
def test_raw_bytes_of_a_made_cache(make: Any, tmp_path: Path, vocabulary: int, k: int, logprobs: str) -> None:
    spec = make.spec(top_k=k, vocabulary_size=vocabulary, logprobs=logprobs)
    make.cache(tmp_path, make.records(spec, 60, longest=100), spec, per_shard=60)
    write_index(tmp_path)
    stats = cache_stats(tmp_path)
    assert cache_bytes(spec, counts_of(stats)) == pytest.approx(stats["bytes"], rel=0.01)
    per_token = cache_bytes(spec, counts_of(stats)) / stats["tokens"]
    assert per_token == pytest.approx(stats["bytes_per_token"], rel=0.01)


def test_temperatures_and_hidden_states_count(make: Any, tmp_path: Path) -> None:
    spec = make.spec(temperatures=(2.0, 4.0), hidden_layers=(0, 3))
    make.cache(tmp_path, make.records(spec, 40, longest=100), spec, per_shard=40)
    write_index(tmp_path)
    stats = cache_stats(tmp_path)
    sidecars = sum(file.stat().st_size for file in (tmp_path / "hidden").iterdir())
    whole = cache_bytes(spec, counts_of(stats), hidden_width=6)
    assert whole == pytest.approx(stats["bytes"] + sidecars, rel=0.03)
    small = dataclasses.replace(spec, hidden_format="int8")
    assert whole - cache_bytes(small, counts_of(stats), hidden_width=6) == stats["rows"] * 2 * (12 - 10)


@pytest.fixture(scope="module")
def real_rows() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import cache as benchmark
    finally:
        sys.path.remove(str(BENCHMARKS))
    return benchmark, benchmark.load_rows(benchmark.ROWS)


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize(("kind", "k"), [("top_k", 16), ("top_k", 64), ("sampled", 0), ("head_tail", 0)])
def test_bytes_of_what_a_real_teacher_said(
    real_rows: Any, make: Any, tmp_path: Path, kind: str, k: int, compression: str, vocabulary: int
) -> None:
    """Within 3 %, zstd and the number of random entries included."""
    benchmark, rows = real_rows
    spec = benchmark.spec_of(kind, k, vocabulary)
    records = [
        Record((16 * number + copy).to_bytes(16, "big"), *(getattr(record, name) for name in FIELDS))
        for copy in range(4)
        for number, record in enumerate(benchmark.real_records(rows, spec))
    ]
    make.cache(tmp_path, records, spec, per_shard=24, compression=compression)
    write_index(tmp_path)
    stats = cache_stats(tmp_path)
    assert cache_bytes(spec, counts_of(stats), compression) == pytest.approx(stats["bytes"], rel=0.03)


def test_case_t16_700_million_positions() -> None:
    """Not the 6 bytes an entry that a 4-byte id and a 2-byte value take (268.8 GB), and nothing like whole logits."""
    from llmdistill.types import CaptureSpec

    spec = CaptureSpec("score", "top_k", 64, 151_936, "", "", "vllm", "bfloat16")
    found = cache_bytes(spec, CacheCounts(1.4e6, 7e8, 7e8, 1.4e6 / 16))
    assert 0.55 * 268.8e9 < found < 0.6 * 268.8e9
    assert found < 7e8 * 151_936 * 2 / 1000
