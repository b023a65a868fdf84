"""Where the files of a cache lie: a local folder, or an fsspec address such as s3://bucket/cache.

A file is written whole or not at all and never changed afterwards. Readers always get a local path: of the file
itself, or of a verified copy in a bounded local folder (`cache/remote.py`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Protocol

from llmdistill.errors import DataError


class Storage(Protocol):
    """A flat folder of immutable files."""

    where: str
    """Address, for messages."""

    def names(self, suffix: str) -> list[str]:
        """Names of the committed files that end in `suffix`, sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where there is none."""

    def local(self, name: str) -> Path:
        """A local path of the whole file; it stays readable while it is open."""

    def put(self, name: str, payload: bytes) -> None:
        """Commit a file: afterwards the name stands for all of it, before for nothing of it."""

    def set_aside(self, name: str) -> None:
        """Move a damaged file into the folder `damaged` beside this one, if it is there."""

    def remove_leftovers(self) -> None:
        """Remove what writers that died have left behind."""


class LocalStorage:
    """A folder of this machine or of a shared file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    def names(self, suffix: str) -> list[str]:
        """See `Storage`."""
        if not self._path.is_dir():
            return []
        return sorted(
            entry.name for entry in os.scandir(self._path) if entry.name.endswith(suffix) and entry.name[0] != "."
        )

    def size(self, name: str) -> int:
        """See `Storage`."""
        path = self._path / name
        return path.stat().st_size if path.exists() else -1

    def local(self, name: str) -> Path:
        """See `Storage`."""
        return self._path / name

    def put(self, name: str, payload: bytes) -> None:
        """See `Storage`."""
        commit_bytes(self._path / name, payload)

    def set_aside(self, name: str) -> None:
        """See `Storage`."""
        aside = self._path.parent / "damaged"
        aside.mkdir(parents=True, exist_ok=True)
        if (self._path / name).exists():
            (self._path / name).rename(aside / name)

    def remove_leftovers(self) -> None:
        """See `Storage`."""
        for leftover in self._path.glob(".*~*~*~*~.tmp"):
            if not _may_be_written(leftover):
                leftover.unlink(missing_ok=True)


def open_storage(address: Path | str) -> Storage:
    """The storage of a folder or of an fsspec address.

    Raises:
        DataError: no program for the address's scheme is installed.
    """
    text = str(address)
    if "://" not in text:
        return LocalStorage(Path(address))
    from llmdistill.cache.remote import RemoteStorage

    return RemoteStorage(text)


_PATIENCE = 3600.0
"""Seconds after which a temporary file of another host is taken for left over."""


def _may_be_written(temporary: Path) -> bool:
    """Whether the writer of a temporary file, named in it, may still live."""
    *_, host, process, _, _ = temporary.name.split("~")
    if host != socket.gethostname():
        return temporary.exists() and time.time() - temporary.stat().st_mtime < _PATIENCE
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def commit_bytes(path: Path, payload: bytes) -> None:
    """Write a file so that its name never stands for less than all of it: temporary name, fsync, rename, fsync.

    Raises:
        DataError: the file system refuses; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex}~.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
        # The rename itself lasts only when the folder's entry does.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(
            f"cannot write {len(payload)} bytes: {error.strerror}",
            where=str(path),
            fix="make room or choose another output, then run the same command again; finished shards are kept",
        ) from None
