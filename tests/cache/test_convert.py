from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmdistill.cache.convert import from_parquet, to_parquet
from llmdistill.cache.diff import diff
from llmdistill.cache.reader import CacheReader
from llmdistill.errors import DataError


@pytest.mark.parametrize("kind", ["top_k", "sampled", "head_tail"])
def test_parquet_round_trip(small_cache: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    cache, _, spec = small_cache(kind, temperatures=(2.0,), vocabulary_size=151_936)
    assert to_parquet(cache, tmp_path / "rows.parquet") == 12
    assert from_parquet(tmp_path / "rows.parquet", tmp_path / "back") == 12
    here, back = CacheReader(cache), CacheReader(tmp_path / "back")
    assert back.spec == spec
    assert here.keys == back.keys
    assert here.splits.tolist() == back.splits.tolist()
    if kind == "sampled":
        assert diff(cache, tmp_path / "back")["equal"]
    for number in range(12):
        a, b = here.read(number), back.read(number)
        assert a.token_ids_N.tolist() == b.token_ids_N.tolist()
        assert (a.source, a.finish_reason) == (b.source, b.finish_reason)
        (ids_a, logprobs_a), (ids_b, logprobs_b) = (part.rows.decode(151_936) for part in (a, b))
        assert ids_a.tolist() == ids_b.tolist()
        assert np.allclose(logprobs_a.exp(), logprobs_b.exp(), atol=0.02)


def test_datasets_reads_the_file(small_cache: Callable[..., Any], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache, records, spec = small_cache()
    to_parquet(cache, tmp_path / "rows.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "hf"))
    assert sorted(loaded["key"]) == sorted(record.key.hex() for record in records)
    assert all(len(row) == spec.top_k for ids in loaded["ids"] for row in ids)


def test_other_parquet_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no capture spec"):
        from_parquet(tmp_path / "x.parquet", tmp_path / "cache")
