from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.cache.diff import diff
from llmdistill.cache.index import committed_keys, write_index
from llmdistill.cache.merge import merge
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.repair import repair
from llmdistill.cache.shard import write_shard
from llmdistill.cache.stats import cache_stats
from llmdistill.cache.verify import verify
from llmdistill.errors import DataError

Built = Callable[..., Any]


def shards(cache: Path) -> list[Path]:
    return sorted((cache / "shards").glob("*.safetensors"))


def regenerate(cache: Path, records: list[Any], spec: Any, make: Any) -> list[bytes]:
    """What `generate` does: ask the shards what is there, make the rest."""
    done = committed_keys(cache, spec)
    pending = [record for record in records if record.key not in done]
    make.cache(cache, pending, spec)
    write_index(cache)
    return [record.key for record in pending]


def same_content(left: Path, right: Path) -> bool:
    return bool(diff(left, right)["equal"])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut by 7 bytes": lambda data: data[:-7],
    "empty": lambda data: b"",
    "header alone": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "too long": lambda data: data + b"\0",
    "lfs pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    # Not in the key table, so that the lost records are known by key.
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 4]),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("indexed", [True, False])
def test_damage_is_named_and_repaired(small_cache: Built, make: Any, tmp_path: Path, how: str, indexed: bool) -> None:
    cache, records, spec = small_cache()
    shutil.copytree(cache, tmp_path / "whole")
    if indexed:
        write_index(cache)
    victim = shards(cache)[1]
    with_keys = committed_keys(cache, spec)
    victim.write_bytes(DAMAGE[how](victim.read_bytes()))
    found = verify(cache)
    assert found.damaged == [victim.name]
    if how != "one bit":  # a reader sees that before it reads a record
        with pytest.raises(DataError, match=victim.name):
            CacheReader(cache)
    done = repair(cache)
    assert list(done.set_aside) == [victim.name]
    assert (cache / "damaged" / victim.name).exists()
    if indexed or how == "one bit":
        assert {bytes.fromhex(key) for key in done.missing} == with_keys - committed_keys(cache, spec)
        assert len(done.missing) == 4
    else:
        assert done.unknown == [victim.name]
    assert not verify(cache).damaged
    assert len(regenerate(cache, records, spec, make)) == 4
    assert same_content(cache, tmp_path / "whole")
    assert repair(cache).set_aside == {}


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kind", ["top_k", "sampled", "head_tail"])
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, make: Any, kind: str, compression: str) -> None:
    spec = make.spec(kind)
    make.cache(tmp_path, make.records(spec, 5), spec, per_shard=5, compression=compression)
    (path,) = shards(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(0, 8), *rng.integers(8, len(whole), 150).tolist()]:
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert verify(tmp_path).damaged == [path.name], f"byte {at}"
    path.write_bytes(whole)
    assert not verify(tmp_path).damaged


def test_a_flipped_bit_is_noticed_when_the_record_is_read(small_cache: Built) -> None:
    cache, _, _ = small_cache()
    path = shards(cache)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the data of some record: uint8 columns come last
    path.write_bytes(data)
    reader = CacheReader(cache)
    faults = []
    for number in range(len(reader)):
        try:
            reader.read(number)
        except DataError as error:
            faults.append(error.where)
    assert faults == [str(path)]


def test_a_shard_that_vanished_is_missed(small_cache: Built, make: Any) -> None:
    cache, records, spec = small_cache()
    write_index(cache)
    victim = shards(cache)[0]
    victim.unlink()
    assert verify(cache).damaged == [victim.name]
    done = repair(cache)
    assert len(done.missing) == 4
    assert {bytes.fromhex(key) for key in done.missing} == set(regenerate(cache, records, spec, make))


def test_another_capture_is_refused_field_by_field(small_cache: Built, make: Any) -> None:  # case T9
    cache, _, _ = small_cache()
    with pytest.raises(DataError, match=r"teacher: the cache has 'teacher', asked is 'other'"):
        committed_keys(cache, make.spec(teacher="other"))


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # case T6
    spec = make.spec()
    records = make.records(spec, 8)
    make.cache(tmp_path, records[:4], spec)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"shards/.*No space left on device"):
            make.cache(tmp_path, records[4:], spec)
    assert len(list((tmp_path / "shards").iterdir())) == 1
    make.cache(tmp_path, records[4:], spec)
    assert len(CacheReader(tmp_path)) == 8


def test_a_full_file_system(make: Any) -> None:  # case T6, with a limit that the kernel enforces
    import resource
    import signal
    import tempfile

    spec = make.spec()
    records = make.records(spec, 40)
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
            with pytest.raises(DataError, match="cannot write"):
                make.cache(Path(folder), records, spec, per_shard=40)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert not [path for path in Path(folder).rglob("*") if path.is_file()]


def test_two_writers_of_one_unit(small_cache: Built, make: Any) -> None:
    cache, records, spec = small_cache()
    before = {path.name: path.read_bytes() for path in shards(cache)}
    make.cache(cache, records, spec)
    assert {path.name: path.read_bytes() for path in shards(cache)} == before


def test_writers_that_cut_units_differently(small_cache: Built, make: Any) -> None:
    cache, records, spec = small_cache()
    make.cache(cache, records[2:7], spec, per_shard=5)
    reader = CacheReader(cache)
    assert sorted(reader.keys) == sorted(record.key for record in records)
    assert reader.duplicates == 5
    found = verify(cache)
    assert not found.damaged
    assert found.records == 12
    assert any("two shards" in finding.what for finding in found.findings)
    assert write_index(cache)["records"] == 12
    assert merge(cache.parent / "one", [cache]).already == 5
    assert not verify(cache.parent / "one").findings


@pytest.mark.parametrize("kind", ["top_k", "sampled", "head_tail"])
def test_merge_moves_records_bit_by_bit(tmp_path: Path, make: Any, kind: str) -> None:
    spec = make.spec(kind, vocabulary_size=151_936, temperatures=(2.0,), hidden_layers=(3,))
    records = make.records(spec, 20)
    make.cache(tmp_path / "a", records[:12], spec)
    make.cache(tmp_path / "b", records[8:], spec, compression="zstd")
    done = merge(tmp_path / "c", [tmp_path / "a", tmp_path / "b"], "zstd")
    assert (done.added, done.already, done.shards) == (20, 4, 1)
    make.cache(tmp_path / "whole", records, spec)
    assert same_content(tmp_path / "c", tmp_path / "whole")
    assert not verify(tmp_path / "c").findings
    assert merge(tmp_path / "c", [tmp_path / "a", tmp_path / "b"]).added == 0


def test_merge_refuses_another_capture_before_it_writes(tmp_path: Path, make: Any) -> None:
    for name, teacher in (("a", "one"), ("b", "two")):
        spec = make.spec(teacher=teacher)
        make.cache(tmp_path / name, make.records(spec, 3), spec)
    with pytest.raises(DataError, match="teacher"):
        merge(tmp_path / "c", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "c").exists()


def test_diff_says_what_differs(tmp_path: Path, make: Any) -> None:
    spec = make.spec()
    records = make.records(spec, 8)
    make.cache(tmp_path / "a", records[:6], spec)
    changed = make.records(spec, 8)
    changed[3].rows.actual_logprobs_R[:] -= 1
    assert len(changed[3].rows.actual_logprobs_R)
    make.cache(tmp_path / "b", changed[2:], spec)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found["common"], found["changed"], found["only_left"], found["only_right"]) == (4, 1, 2, 2)
    assert found["examples"]["changed"] == [records[3].key.hex()]
    assert not found["equal"]


def test_stats_count(small_cache: Built) -> None:
    cache, records, _ = small_cache()
    found = cache_stats(cache)
    assert found["records"] == 12
    assert found["rows"] == sum(len(record.rows.ids_RK) for record in records)
    assert found["bytes"] == sum(path.stat().st_size for path in shards(cache))
    mass = np.concatenate([np.exp(record.rows.logprobs_RK).sum(1) for record in records])
    assert found["captured_mass"]["mean"] == pytest.approx(mass.mean(), abs=1e-3)
    assert found["captured_mass"]["p50"] == pytest.approx(np.quantile(mass, 0.5, method="inverted_cdf"), abs=1e-3)
    assert sum(found["finish_reasons"].values()) == 12
    json.dumps(found)


def test_leftovers_of_the_dead_go_and_of_the_living_stay(small_cache: Built) -> None:
    import socket
    import subprocess
    import sys

    cache, _, spec = small_cache()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = cache / "shards" / f".x~{socket.gethostname()}~{child.pid}~0~.tmp"
    alive = cache / "shards" / f".x~{socket.gethostname()}~{os.getpid()}~0~.tmp"
    elsewhere = cache / "shards" / ".x~another-host~1~0~.tmp"
    old = cache / "shards" / ".x~another-host~2~0~.tmp"
    for path in (dead, alive, elsewhere, old):
        path.touch()
    os.utime(old, (0, 0))
    committed_keys(cache, spec)
    assert [path.exists() for path in (dead, alive, elsewhere, old)] == [False, True, True, False]


def test_many_small_units_become_few_files(tmp_path: Path, make: Any) -> None:  # case T17
    spec = make.spec()
    records = make.records(spec, 60)
    for record in records:
        write_shard(tmp_path / "a" / "shards", [record], spec, "fake 1")
    assert merge(tmp_path / "b", [tmp_path / "a"]).shards == 1
    assert same_content(tmp_path / "a", tmp_path / "b")
