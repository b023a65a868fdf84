"""Which files a source names, in which order, on which storage."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from llmdistill.config.prompts import SourceConfig
from llmdistill.errors import DataError
from llmdistill.prompts.files import find_files, fingerprint
from tests.prompts.makers import read, usable, write_jsonl


def texts(path: Path | str, **source) -> list[str | None]:
    return [row.text for row in usable(read(path, **source))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    for name in ("10.jsonl", "9.jsonl", "b/1.jsonl", "_temporary.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    (tmp_path / "notes.docx").write_bytes(b"no data")
    return tmp_path


def test_folders_and_globs_are_read_in_the_order_of_names(folder: Path) -> None:
    assert texts(folder) == ["10.jsonl", "9.jsonl", "b/1.jsonl"]
    assert texts(folder / "*.jsonl") == ["10.jsonl", "9.jsonl", "_temporary.jsonl"]
    assert texts(folder / "**" / "[19]*.jsonl") == ["10.jsonl", "9.jsonl", "b/1.jsonl"]


def test_names_in_messages_are_the_ones_of_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [row.source for row in read("9.jsonl") + read("b") + read("1*.jsonl")] == [
        "9.jsonl:1",
        "b/1.jsonl:1",
        "10.jsonl:1",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent.jsonl", "No such file"),
        ("absent/*.jsonl", "no file is found"),
        ("notes.docx", "the name does not say what the file holds; known: .jsonl"),
        ("s4://bucket/a.jsonl", "Protocol not known: s4"),
        ("memory://absent-folder/a.jsonl", "cannot read the prompts"),
    ],
)
def test_what_cannot_be_found_is_named(folder: Path, path: str, message: str) -> None:
    where = path if "://" in path else str(folder / path)
    with pytest.raises(DataError) as caught:
        read(where)
    assert message in str(caught.value)


def test_a_format_may_be_stated(folder: Path) -> None:
    (folder / "dump.dat").write_text('{"text": "a"}\n')
    assert texts(folder / "dump.dat", format="jsonl") == ["a"]


@pytest.fixture
def memory_folder() -> Iterator[str]:
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory:/"), recursive=True)


def test_fsspec_addresses_are_files_folders_and_globs(memory_folder: str, tmp_path: Path) -> None:
    names = ("2.jsonl", "10.jsonl.gz", "c/3.parquet")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["c/3.parquet"]}), tmp_path / "3.parquet")
    for name in names:
        with fsspec.open(f"{memory_folder}/{name}", "wb", compression="infer") as stream:
            if name.endswith("parquet"):
                stream.write((tmp_path / "3.parquet").read_bytes())
            else:
                stream.write(f'{{"text": "{name}"}}\n'.encode())
    assert texts(f"{memory_folder}/2.jsonl") == ["2.jsonl"]
    assert texts(memory_folder) == ["10.jsonl.gz", "2.jsonl", "c/3.parquet"]
    assert texts(f"{memory_folder}/*.jsonl*") == ["10.jsonl.gz", "2.jsonl"]
    assert read(f"{memory_folder}/2.jsonl")[0].source.endswith("2.jsonl:1")
    assert read(f"{memory_folder}/2.jsonl")[0].source.startswith("memory://")


def test_files_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Connections are kept by address, and an earlier test's server may have had another.
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        bucket = f"b{uuid.uuid4().hex[:12]}"
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir(bucket)
        for name in ("2.jsonl", "1.jsonl"):
            system.pipe_file(f"{bucket}/data/{name}", f'{{"text": "{name}"}}\n'.encode())
        assert texts(f"s3://{bucket}/data") == ["1.jsonl", "2.jsonl"]
        assert texts(f"s3://{bucket}/data/[2]*.jsonl") == ["2.jsonl"]
        source = SourceConfig(path=f"s3://{bucket}/data")
        before = fingerprint(source)
        assert before == fingerprint(source)
        system.pipe_file(f"{bucket}/data/1.jsonl", b'{"text": "other"}\n')
        assert before != fingerprint(source)
    finally:
        server.stop()


def test_the_fingerprint_follows_contents_alone(folder: Path) -> None:
    source = SourceConfig(path=str(folder))
    before = fingerprint(source)
    (folder / "9.jsonl").touch()
    assert fingerprint(source) == before
    (folder / "9.jsonl").write_text('{"text": "other"}\n')
    assert fingerprint(source) != before
    assert fingerprint(SourceConfig(path=str(folder / "absent"))) == fingerprint(SourceConfig(hub="some/data"))


def test_file_names_may_hold_glob_characters(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a[1].jsonl", [{"text": "a"}])
    assert len(find_files(SourceConfig(path=str(tmp_path / "a[1].jsonl")))) == 1
