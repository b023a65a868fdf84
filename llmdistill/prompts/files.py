"""Which files a source names, and in which order: that of their names, the same on every machine."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from llmdistill.config.prompts import SourceConfig
from llmdistill.errors import DataError, LLMDistillError
from llmdistill.prompts.compression import SUFFIXES, decompressed
from llmdistill.prompts.containers import NumberedRow, read_csv, read_json, read_jsonl, read_parquet, read_text

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""Ending of a file's name → what it holds."""

_READERS = {"jsonl": read_jsonl, "json": read_json, "parquet": read_parquet, "csv": read_csv}


@dataclass(frozen=True)
class CorpusFile:
    """One file."""

    name: str
    """As the source names it, for messages."""
    format: str
    compression: str | None
    system: Any = None
    """fsspec file system; None: this machine's files."""
    path: str = ""
    """Its path on `system`."""

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes.

        Raises:
            DataError: it cannot be opened or read.
        """
        try:
            if self.system is None:
                with open(self.name, "rb") as stream:
                    yield stream
            else:
                with self.system.open(self.path, "rb") as remote:
                    yield cast("BinaryIO", remote)
        except LLMDistillError as error:
            raise type(error)(error.what, where=error.where or self.name, fix=error.fix) from None
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"damaged {self.compression} file: {error}", where=self.name) from None
        except OSError as error:
            raise DataError(f"cannot read the prompts: {error.strerror or error}", where=self.name) from None
        except Exception as error:
            if self.system is None:
                raise
            # The back ends of fsspec have errors of their own.
            raise DataError(f"cannot read the prompts: {type(error).__name__}: {error}", where=self.name) from error

    def rows(self, sample_by: str) -> Iterator[NumberedRow]:
        """The file's rows, see `containers.py`.

        Raises:
            DataError: the file cannot be read, or is damaged.
        """
        with self.open() as stream, decompressed(stream, self.compression) as contents:
            if self.format == "text":
                yield from read_text(contents, sample_by)
            else:
                yield from _READERS[self.format](contents)


def find_files(source: SourceConfig) -> list[CorpusFile]:
    """The files of a source with a `path`, in order.

    Raises:
        DataError: there is none, or a name does not say what the file holds.
    """
    assert source.path is not None
    if "://" in source.path or "::" in source.path:
        files, is_folder, system = _find_remote(source.path)
    else:
        files, is_folder = _find_local(os.path.expanduser(source.path))
        system = None
    found = []
    for name, path in files:
        stem, suffix = os.path.splitext(name.lower())
        compression = SUFFIXES.get(suffix)
        ending = os.path.splitext(stem)[1] if compression else suffix
        format_name = source.format or FORMATS.get(ending)
        if format_name is not None:
            found.append(CorpusFile(name, format_name, compression, system, path))
        elif not is_folder:
            raise DataError(
                f"the name does not say what the file holds; known: {', '.join(FORMATS)}, each also with"
                f" {' or '.join(SUFFIXES)}",
                where=name,
                fix="rename it or set format: in the source",
            )
    if not found:
        raise DataError("no file is found there", where=source.path)
    return found


def fingerprint(source: SourceConfig) -> str:
    """Hash of the contents of a source's files; of remote ones, of what the storage says about them (size, time, tag).

    A hub data set has none but its configuration's, and neither have files that are not there.
    """
    digest = hashlib.blake2b(digest_size=16)
    with contextlib.suppress(DataError):
        for file in find_files(source) if source.path is not None else ():
            if file.system is not None:
                digest.update(f"{file.name}:{file.system.ukey(file.path)};".encode())
                continue
            with file.open() as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _find_local(path: str) -> tuple[list[tuple[str, str]], bool]:
    if os.path.isdir(path):
        names = [str(file) for file in Path(path).rglob("*") if file.is_file() and _is_visible(file.relative_to(path))]
        return [(name, name) for name in sorted(names)], True
    if os.path.exists(path):
        return [(path, path)], False
    if glob.has_magic(path):
        matches = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        return [(name, name) for name in matches], False
    raise DataError("cannot read the prompts: No such file or directory", where=path)


def _find_remote(address: str) -> tuple[list[tuple[str, str]], bool, Any]:
    import fsspec

    scheme = address.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(address)
        system.invalidate_cache()
        if glob.has_magic(path) and not system.exists(path):
            is_folder, paths = False, sorted(system.glob(path))
        elif system.isdir(path):
            is_folder = True
            paths = [name for name in sorted(system.find(path)) if _is_visible(Path(name[len(path) :].lstrip("/")))]
        else:
            is_folder, paths = False, [path]
    except (ImportError, ValueError) as error:
        raise DataError(str(error), where=address, fix=f"pip install the fsspec back end of {scheme}://") from None
    except Exception as error:  # a back end's own
        raise DataError(f"cannot read the prompts: {type(error).__name__}: {error}", where=address) from None
    return [(str(system.unstrip_protocol(name)), name) for name in paths], is_folder, system


def _is_visible(path: Path) -> bool:
    """Hidden files, and what starts with an underscore (_SUCCESS, _temporary), are no data."""
    return not any(part.startswith((".", "_")) for part in path.parts)
