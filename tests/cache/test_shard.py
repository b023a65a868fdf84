"""One cache, from records to bytes and back."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.codec import decode_ids, encode_ids, high_bits
from llmdistill.cache.index import committed_keys, shard_folder, shard_paths, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import read_summary, verify_shard, write_shard
from llmdistill.errors import DataError
from tests.helpers import SPEC, make_cache, make_record


@pytest.mark.parametrize(
    ("size", "width"), [(300, 0), (65536, 0), (65537, 1), (151_936, 2), (262_144, 2), (300_000, 4)]
)
def test_ids_of_any_vocabulary_return_exactly(size: int, width: int) -> None:
    assert high_bits(size) == width
    ids = np.random.default_rng(0).integers(0, size, (7, 13))
    ids[0, :2] = 0, size - 1
    low, high = encode_ids(ids, size)
    assert decode_ids(torch.from_numpy(low), torch.from_numpy(high), size).tolist() == ids.tolist()
    with pytest.raises(ValueError, match=f"0 … {size - 1}"):
        encode_ids(np.array([[size]]), size)


def test_records_return_and_order_follows_their_keys(tmp_path: Path) -> None:
    made = sorted(make_cache(tmp_path), key=lambda record: record.key)
    reader = CacheReader(tmp_path)
    assert reader.keys == [record.key for record in made]
    for number, record in enumerate(made):
        found = reader.read(number)
        assert found.token_ids_N.tolist() == record.token_ids_N.tolist()
        assert found.supervised_N.tolist() == record.supervised_N.tolist()
        ids, logprobs = found.rows.decode(SPEC.vocabulary_size)
        assert ids.tolist() == record.rows.ids_RK.tolist()
        mass = np.exp(record.rows.logprobs_RK.astype(float)).sum(axis=1)
        assert torch.logsumexp(logprobs, 1).exp().tolist() == pytest.approx(mass.tolist(), rel=1e-5)
        assert np.abs(logprobs.numpy() - record.rows.logprobs_RK).max() < 0.1
        assert found.rows.actual_logprobs_R.tolist() == pytest.approx(record.rows.actual_logprobs_R.tolist(), rel=1e-3)


def test_split_is_by_the_prompts_hash(tmp_path: Path) -> None:
    make_cache(tmp_path, records=40)
    reader = CacheReader(tmp_path)
    train, held_out = reader.split(0.25)
    assert sorted([*train, *held_out]) == list(range(40))
    assert 3 <= len(held_out) <= 18
    assert (reader.splits[held_out].astype(float) < 0.25 * 2**64).all()
    assert set(held_out) <= set(reader.split(0.5)[1])


def test_another_capture_is_refused_with_the_difference(tmp_path: Path) -> None:
    made = make_cache(tmp_path)
    assert committed_keys(tmp_path, SPEC) == {record.key for record in made}
    with pytest.raises(DataError, match="top_k: the cache has 8, asked is 16"):
        committed_keys(tmp_path, dataclasses.replace(SPEC, top_k=16))


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_damage_is_named_by_file(tmp_path: Path, damage: str) -> None:
    make_cache(tmp_path)
    path = shard_paths(tmp_path)[1]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 4
    path.write_bytes({"cut": content[:-7], "empty": b"", "flipped": content}[damage])
    with pytest.raises(DataError, match=path.name):
        verify_shard(path)
    if damage != "flipped":
        with pytest.raises(DataError, match=path.name):
            CacheReader(tmp_path)


def test_an_interrupted_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    made = make_cache(tmp_path)
    leftover = shard_folder(tmp_path) / ".abc.safetensors.1234.tmp"
    leftover.write_bytes(b"half a shard")
    assert len(committed_keys(tmp_path, SPEC)) == len(made)
    assert not leftover.exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_shard(shard_folder(tmp_path), [make_record(1)], SPEC, "fake-1")
    assert not list(shard_folder(tmp_path).iterdir())


def test_the_index_is_made_again_from_the_shards(tmp_path: Path) -> None:
    make_cache(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    index = write_index(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == before
    assert index["records"] == 12
    assert read_summary(shard_paths(tmp_path)[0]).records in (5, 2)


def test_impossible_rows_are_refused(tmp_path: Path) -> None:
    record = make_record(1)
    for logprobs in (record.rows.logprobs_RK * np.nan, np.zeros_like(record.rows.logprobs_RK)):
        broken = dataclasses.replace(record, rows=dataclasses.replace(record.rows, logprobs_RK=logprobs))
        with pytest.raises(ValueError, match="log-probabilities must be numbers"):
            write_shard(shard_folder(tmp_path), [broken], SPEC, "fake-1")
