from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llmdistill.cache.reader import CacheReader
from llmdistill.cache.rows import EncodedRows
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import DataError
from llmdistill.types import HeadTailRows, Record, SampledRows, TopKRows

KINDS = ("top_k", "sampled", "head_tail")


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("vocabulary", [1000, 151_936])
@pytest.mark.parametrize("kind", KINDS)
def test_records_come_back(tmp_path: Path, make: Any, kind: str, vocabulary: int, compression: str) -> None:
    spec = make.spec(kind, vocabulary_size=vocabulary, temperatures=(2.0, 0.5))
    records = make.records(spec, 30)
    make.cache(tmp_path, records, spec, per_shard=7, compression=compression)
    reader = CacheReader(tmp_path)
    assert reader.spec == spec
    assert list(reader.keys) == sorted(record.key for record in records)
    by_key = {record.key: record for record in records}
    for number, key in enumerate(reader.keys):
        expected, found = by_key[key], reader.read(number)
        assert found.token_ids_N.tolist() == expected.token_ids_N.tolist()
        assert found.supervised_N.tolist() == expected.supervised_N.tolist()
        assert (found.finish_reason, found.source) == (expected.finish_reason, expected.source)
        assert int(reader.splits[number]) == expected.split
        assert np.allclose(found.rows.actual_logprobs_R, expected.rows.actual_logprobs_R, rtol=1e-3)
        assert np.allclose(found.rows.entropy_R, expected.rows.entropy_R, rtol=1e-3)
        assert np.array_equal(found.rows.logsumexp_RJ, expected.rows.logsumexp_RJ)
        require_same_entries(found.rows, expected)


def require_same_entries(rows: EncodedRows, expected: Record) -> None:
    ids_RK, logprobs_RK = (part.numpy() for part in rows.decode(rows.spec.vocabulary_size))
    said, probabilities_RK = expected.rows, np.exp(logprobs_RK.astype(np.float64))
    assert np.allclose(probabilities_RK.sum(1), rows.mass_R, rtol=1e-5)
    if isinstance(said, TopKRows):
        assert np.array_equal(ids_RK, said.ids_RK)
        assert np.abs(logprobs_RK - said.logprobs_RK).max(initial=0) < 0.2
        return
    filled = logprobs_RK > -np.inf
    assert ids_RK[filled].tolist() == said.ids_E.tolist()
    assert (ids_RK == np.where(filled, ids_RK, ids_RK[:, :1])).all()
    if isinstance(said, SampledRows):
        assert np.allclose(probabilities_RK[filled], said.counts_E / rows.spec.draws, rtol=1e-5)
        return
    assert isinstance(said, HeadTailRows)
    heads = iter(np.split(said.head_logprobs_H, np.cumsum(said.heads_R)[:-1]))
    draws = iter(np.split(said.tail_counts_F, np.cumsum(said.tails_R)[:-1]))
    for row in range(len(said.heads_R)):
        head, count = next(heads), next(draws)
        rest = 1 - np.exp(head.astype(np.float64)).sum()
        expected_row = np.concatenate([np.exp(head), rest * count / count.sum()])
        assert np.allclose(probabilities_RK[row][filled[row]], expected_row, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("format", ["u4", "u8", "u12", "f16"])
@pytest.mark.parametrize("kind", ["top_k", "head_tail"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_logprob_format_is_stored(tmp_path: Path, make: Any, kind: str, format: str, compression: str) -> None:
    spec = make.spec(kind, logprobs=format, **({"top_k": 7} if kind == "top_k" else {}))
    records = make.records(spec, 9)
    make.cache(tmp_path, records, spec, compression=compression)
    reader = CacheReader(tmp_path)
    by_key = {record.key: record.rows for record in records}
    worst = 0.0
    for number in range(len(reader)):
        rows, said = reader.read(number).rows, by_key[reader.keys[number]]
        logprobs_RK = rows.decode(1000)[1].numpy()
        assert np.allclose(np.exp(logprobs_RK).sum(1), rows.mass_R, rtol=1e-4)
        if isinstance(said, TopKRows) and len(logprobs_RK):
            worst = max(worst, float(np.abs(logprobs_RK - said.logprobs_RK).max()))
    assert worst <= {"u4": 2.0, "u8": 0.12, "u12": 0.008, "f16": 0.008}[format]


@pytest.mark.parametrize("kind", KINDS)
def test_concatenated_rows_decode_as_single_ones(tmp_path: Path, make: Any, kind: str) -> None:
    spec = make.spec(kind, vocabulary_size=151_936)
    make.cache(tmp_path, make.records(spec, 6), spec)
    reader = CacheReader(tmp_path)
    parts = [reader.read(number).rows for number in range(6)]
    ids, logprobs = EncodedRows.concatenate(parts).to(torch.device("cpu")).decode(151_936)
    start = 0
    for part in parts:
        one_ids, one_logprobs = part.decode(151_936)
        width = one_ids.shape[1]
        assert torch.equal(ids[start : start + len(part), :width], one_ids)
        assert torch.allclose(logprobs[start : start + len(part), :width], one_logprobs, atol=1e-6)
        start += len(part)
    assert start == len(ids)


def test_the_plain_library_opens_a_shard(small_cache: Callable[..., Any]) -> None:
    cache, records, spec = small_cache()
    path = next((cache / "shards").glob("*.safetensors"))
    with safe_open(path, framework="numpy") as shard:
        assert shard.metadata()["format"] == "llmdistill-cache"
        assert shard.get_tensor("entry_ids_low").shape[1] == spec.top_k
        keys = {bytes(key) for key in shard.get_tensor("keys")}
    assert keys <= {record.key for record in records}


def test_a_pickle_is_never_read(tmp_path: Path) -> None:  # case S1
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "evil",)

    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], dtype=object), allow_pickle=True)
    path = tmp_path / "shards" / "x.safetensors"
    path.parent.mkdir()
    path.write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"x\.safetensors"):
        CacheReader(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids_RK": lambda ids: ids + 1000}, "ids must be"),
        ({"logprobs_RK": lambda values: values * np.nan}, "at most 1"),
        ({"logprobs_RK": lambda values: values * 0}, "at most 1"),
        ({"logprobs_RK": lambda values: values[:, ::-1]}, "sorted"),
        ({"actual_logprobs_R": lambda values: values + 100}, "actual token"),
        ({"entropy_R": lambda values: values - 100}, "entropies"),
    ],
)
def test_impossible_rows_are_refused(tmp_path: Path, make: Any, change: dict[str, Any], message: str) -> None:
    spec = make.spec()
    record = next(record for record in make.records(spec, 9) if len(record.rows.ids_RK))
    for name, function in change.items():
        object.__setattr__(record.rows, name, function(getattr(record.rows, name)))
    with pytest.raises(ValueError, match=message):
        make.cache(tmp_path, [record], spec)
    assert not list(tmp_path.rglob("*.*"))


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path, make: Any) -> None:
    spec = make.spec()
    records = make.records(spec, 1)
    records[0].token_ids_N[0] = 1000
    with pytest.raises(ValueError, match="found"):
        make.cache(tmp_path, records, spec)


def test_another_version_is_refused_by_name(small_cache: Callable[..., Any]) -> None:
    cache, _, _ = small_cache()
    path = next((cache / "shards").glob("*.safetensors"))
    path.write_bytes(path.read_bytes().replace(b'"version":"2"', b'"version":"9"'))
    with pytest.raises(DataError, match="version '9'"):
        ShardFile(path)


def test_reading_twice_gives_the_same_bytes(tmp_path: Path, make: Any) -> None:
    spec = make.spec()
    records = make.records(spec, 4)
    make.cache(tmp_path / "a", records, spec)
    make.cache(tmp_path / "b", records, spec)
    (a,), (b,) = (list((tmp_path / name / "shards").iterdir()) for name in "ab")
    assert a.name == b.name
    assert a.read_bytes() == b.read_bytes()
