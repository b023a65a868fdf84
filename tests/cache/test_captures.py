"""Records of several teachers in one cache: who made what, and what must not lie together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmdistill.cache.convert import to_parquet
from llmdistill.cache.diff import diff
from llmdistill.cache.index import Capture, committed_keys, read_captures, write_index
from llmdistill.cache.merge import merge
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.stats import cache_stats
from llmdistill.cache.verify import verify
from llmdistill.errors import DataError

FIRST = {"teacher": "one", "sampling": {"temperature": 1.0}}
SECOND = {"teacher": "two", "engine": "vllm", "dtype": "bfloat16", "sampling": {"temperature": 0.5}}


@pytest.fixture
def mixed(tmp_path: Path, make: Any) -> tuple[Path, list, list]:
    """Eight records of one teacher and five of another."""
    specs = [make.spec(**FIRST), make.spec(**SECOND)]
    records = make.records(specs[0], 13)
    make.cache(tmp_path / "cache", records[:8], specs[0])
    make.cache(tmp_path / "cache", records[8:], specs[1])
    return tmp_path / "cache", records, specs


def test_records_of_two_teachers_are_read_as_one_cache(mixed: Any) -> None:
    cache, records, specs = mixed
    reader = CacheReader(cache)
    assert sorted(reader.keys) == sorted(record.key for record in records)
    assert sorted(reader.specs, key=lambda spec: spec.teacher) == specs
    assert (reader.spec.teacher, reader.spec.engine, reader.spec.sampling) == ("", "", {})
    assert reader.spec.top_k == specs[0].top_k
    assert not verify(cache).damaged


def test_all_teachers_have_to_be_named(mixed: Any, make: Any) -> None:
    cache, records, specs = mixed
    assert committed_keys(cache, *specs) == {record.key for record in records}
    with pytest.raises(DataError, match="teacher: the cache has 'two', asked is 'one'"):
        committed_keys(cache, specs[0])
    changed = make.spec(**{**SECOND, "sampling": {"temperature": 0.7}})
    with pytest.raises(DataError, match=r"sampling: the cache has .*0\.5.*asked is .*0\.7") as refusal:
        committed_keys(cache, specs[0], changed)
    assert "teacher:" not in str(refusal.value), "the most similar capture is shown"


@pytest.mark.parametrize(
    "change", [{"top_k": 6}, {"vocabulary_size": 999}, {"temperatures": (2.0,)}, {"logprobs": "f16"},
               {"mode": "generate"}, {"tokenizer": "other"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_rows_of_two_kinds_never_lie_together(mixed: Any, make: Any, change: dict[str, Any]) -> None:
    cache, _, _ = mixed
    other = make.spec(**FIRST, **change)
    make.cache(cache, make.records(other, 20)[16:], other)
    (name,) = change
    with pytest.raises(DataError, match=f"{name}: "):
        CacheReader(cache)
    with pytest.raises(DataError, match=f"{name}: "):
        cache_stats(cache)
    assert any(name in finding.what for finding in verify(cache).findings)


def test_stats_and_index_count_by_teacher(mixed: Any) -> None:
    cache, records, specs = mixed
    write_index(cache, [Capture(specs[1], "code"), Capture(specs[0], "teacher")])
    for _ in range(2):
        found = {one["name"]: one for one in cache_stats(cache)["teachers"]}
        assert {name: one["records"] for name, one in found.items()} == {"teacher": 8, "code": 5}
        assert found["teacher"]["tokens"] == sum(len(record.token_ids_N) for record in records[:8])
        assert found["code"]["sampling"] == {"temperature": 0.5}
        assert [capture.name for capture in read_captures(cache)] == ["code", "teacher"]
        write_index(cache)  # as repair does, which knows no names


def test_a_cache_of_two_teachers_is_merged_and_compared(mixed: Any, tmp_path: Path, make: Any) -> None:
    cache, records, specs = mixed
    write_index(cache, [Capture(specs[0], "teacher"), Capture(specs[1], "code")])
    assert merge(tmp_path / "copy", [cache], "zstd").shards == 2
    assert diff(cache, tmp_path / "copy")["equal"]
    assert [capture.name for capture in read_captures(tmp_path / "copy")] == ["teacher", "code"]
    make.cache(tmp_path / "single", records[:8], specs[0])
    compared = diff(cache, tmp_path / "single")
    assert compared["spec"]["teacher"] == [["one", "two"], "one"]
    assert merge(tmp_path / "copy", [tmp_path / "single"]).added == 0
    foreign = make.spec(teacher="three")
    make.cache(tmp_path / "foreign", make.records(foreign, 3), foreign)
    with pytest.raises(DataError, match="the cache has 'three'"):
        merge(tmp_path / "copy", [tmp_path / "foreign"])


def test_parquet_says_that_it_names_one_teacher(mixed: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="records of 2 teachers"):
        to_parquet(mixed[0], tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()
