"""Object storage: the real S3 protocol (moto's server), and a file system that fails on purpose."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from llmdistill.cache import remote
from llmdistill.cache.diff import diff
from llmdistill.cache.index import committed_keys, shard_names, write_index
from llmdistill.cache.merge import merge
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.remote import RemoteStorage, retrying
from llmdistill.cache.repair import repair
from llmdistill.cache.verify import verify
from llmdistill.errors import DataError


@pytest.fixture(autouse=True)
def local_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMDISTILL_CACHE_DIR", str(tmp_path / "copies"))
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    return tmp_path / "copies"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    name = f"b{uuid.uuid4().hex[:12]}"
    file_system = fsspec.filesystem("s3", skip_instance_cache=True)
    file_system.mkdir(name)
    return f"s3://{name}"


def test_a_cache_lives_on_s3(bucket: str, tmp_path: Path, make: Any, local_copies: Path) -> None:
    spec, address = make.spec(hidden_layers=(1,)), f"{bucket}/runs/cache"
    records = make.records(spec, 12)
    for start in range(0, 12, 4):
        remote_write(address, records[start : start + 4], spec)
    assert write_index(address)["records"] == 12
    assert committed_keys(address, spec) == {record.key for record in records}
    assert not verify(address).findings
    make.cache(tmp_path / "here", records, spec)
    assert diff(address, tmp_path / "here")["equal"]
    reader = CacheReader(address)
    assert sorted(reader.read(3).token_ids_N.tolist()) == sorted(
        CacheReader(tmp_path / "here").read(3).token_ids_N.tolist()
    )
    assert merge(tmp_path / "down", [address]).added == 12
    assert merge(f"{bucket}/up", [tmp_path / "here"], "zstd").added == 12
    assert diff(f"{bucket}/up", address)["equal"]


def remote_write(address: str, records: list[Any], spec: Any) -> None:
    from llmdistill.cache.shard import write_shard

    write_shard(f"{address}/shards", records, spec, "fake 1")


def test_damage_on_s3_is_repaired(bucket: str, make: Any) -> None:
    spec, address = make.spec(), f"{bucket}/cache"
    records = make.records(spec, 8)
    remote_write(address, records[:4], spec)
    remote_write(address, records[4:], spec)
    write_index(address)
    victim = shard_names(address)[0]
    file_system = fsspec.filesystem("s3")
    file_system.pipe_file(f"{address}/shards/{victim}"[5:], file_system.cat_file(f"{address}/shards/{victim}"[5:])[:-7])
    assert verify(address).damaged == [victim]
    assert len(repair(address).missing) == 4
    assert shard_names(address) != []
    assert victim not in shard_names(address)
    assert file_system.exists(f"{address}/damaged/{victim}"[5:])


def test_a_large_object_goes_in_parts(bucket: str) -> None:
    payload = os.urandom(20 << 20)
    storage = RemoteStorage(f"{bucket}/large")
    storage.put("x.safetensors", payload)
    info = fsspec.filesystem("s3").info(f"{bucket}/large/x.safetensors"[5:])
    assert "-" in info["ETag"], "not a multipart upload"
    assert storage.local("x.safetensors").read_bytes() == payload


class Flaky(MemoryFileSystem):
    """Memory that fails `faults` times, in the way that `fault` says."""

    protocol = "flaky"
    cachable = False
    faults, fault, calls = 0, "", 0

    def _maybe(self, wanted: str) -> bool:
        Flaky.calls += 1
        if Flaky.faults and Flaky.fault == wanted:
            Flaky.faults -= 1
            return True
        return False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode and self._maybe("slow down"):
            raise OSError(16, "Please reduce your request rate. (SlowDown, 503)")
        stream = super().open(path, mode, **options)
        if "r" in mode and self._maybe("short"):
            import io

            return io.BytesIO(stream.read()[:-7])
        return stream

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if self._maybe("half a put"):
            value = value[: len(value) // 2]
        super().pipe_file(path, value, **options)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def flaky(make: Any) -> Callable[[str, int], str]:
    def build(fault: str, faults: int) -> str:
        spec, address = make.spec(), f"flaky://{uuid.uuid4().hex}/cache"
        if fault != "half a put":
            remote_write(address, make.records(spec, 4), spec)
        Flaky.faults, Flaky.fault, Flaky.calls = faults, fault, 0
        return address

    return build


@pytest.mark.parametrize("fault", ["slow down", "short"])
def test_passing_faults_are_retried(flaky: Callable[[str, int], str], fault: str) -> None:  # case T12
    reader = CacheReader(flaky(fault, 2))
    assert len(reader) == 4
    assert Flaky.faults == 0


def test_half_a_put_is_noticed_and_repeated(flaky: Callable[[str, int], str], make: Any) -> None:
    address, spec = flaky("half a put", 2), make.spec()
    remote_write(address, make.records(spec, 4), spec)
    assert Flaky.faults == 0
    assert not verify(address).damaged


def test_lasting_faults_are_named(flaky: Callable[[str, int], str]) -> None:
    with pytest.raises(DataError, match=r"after 6 attempts.*expected \d+ bytes, found \d+"):
        CacheReader(flaky("short", 99))


def test_a_missing_object_is_not_asked_for_again(flaky: Callable[[str, int], str]) -> None:
    storage = RemoteStorage(flaky("", 0) + "/shards")
    with pytest.raises(DataError, match="does not exist"):
        storage.local("no.safetensors")

    calls = []

    def refused() -> None:
        calls.append(1)
        raise PermissionError("AccessDenied")

    with pytest.raises(DataError, match="AccessDenied"):
        retrying(refused, "read", "s3://x", pause=0.001)
    assert len(calls) == 1


def test_local_copies_are_bounded(tmp_path: Path) -> None:
    address = f"memory://{uuid.uuid4().hex}/shards"
    storage = RemoteStorage(address, tmp_path / "copies", local_bytes=2500)
    for number in range(5):
        storage.put(f"{number}.safetensors", bytes(1000))
    for number in (0, 1, 2, 3, 4, 0):
        assert storage.local(f"{number}.safetensors").stat().st_size == 1000
        assert sum(file.stat().st_size for file in (tmp_path / "copies").rglob("*") if file.is_file()) <= 2500
    storage.put("huge.safetensors", bytes(3000))
    with pytest.raises(DataError, match="does not fit"):
        storage.local("huge.safetensors")


def test_an_open_copy_outlives_its_removal(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, address = make.spec(), f"memory://{uuid.uuid4().hex}/cache"
    records = make.records(spec, 12)
    for start in range(0, 12, 4):
        remote_write(address, records[start : start + 4], spec)
    largest = max(RemoteStorage(f"{address}/shards").size(name) for name in shard_names(address))
    monkeypatch.setenv("LLMDISTILL_CACHE_BYTES", str(largest + 10))
    reader = CacheReader(address)
    for number in [*range(12), *range(12)]:
        assert len(reader.read(number).token_ids_N) == reader.token_counts[number]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match="nosuch"):
        RemoteStorage("nosuch://bucket/cache")
