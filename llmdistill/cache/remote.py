"""Caches on object storage (s3://, gs://, …) through fsspec.

A put is one object, in parts where it is large: object storage shows an object only when all of it has arrived. A get
copies the whole shard into a bounded folder of this machine, under a temporary name until its length is right, and
opens it there. Faults that pass (throttling, timeouts, broken connections, bodies cut short) are tried again with
growing pauses; a missing object or a refused credential is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llmdistill.errors import DataError

_T = TypeVar("_T")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
ATTEMPTS = 6
PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long, with some chance in it."""
PART_BYTES = 8 << 20
"""An object of twice this size or more is sent in parts of it."""
LOCAL_FOLDER = "LLMDISTILL_CACHE_DIR"
LOCAL_BYTES = "LLMDISTILL_CACHE_BYTES"


class ShortReadError(OSError):
    """Fewer bytes arrived than the object has."""


def retrying(action: Callable[[], _T], what: str, where: str, attempts: int = ATTEMPTS, pause: float = PAUSE) -> _T:
    """Run `action`, again after faults that may pass.

    Raises:
        DataError: the fault is final, or came `attempts` times.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except _FINAL as error:
            raise DataError(f"cannot {what}: {type(error).__name__}: {error}", where=where) from None
        # fsspec's back ends raise errors of their own for a broken connection, not all of them OSErrors.
        except Exception as error:
            if attempt == attempts:
                raise DataError(
                    f"cannot {what} after {attempts} attempts: {type(error).__name__}: {error}",
                    where=where,
                    fix="run the same command again when the storage answers; what is committed is kept",
                ) from None
            time.sleep(pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    raise AssertionError("attempts must be at least 1")


class RemoteStorage:
    """A folder on object storage.

    Args:
        address: fsspec address of the folder.
        local: where copies lie; None: `$LLMDISTILL_CACHE_DIR`, or a folder of the user's cache.
        local_bytes: how much they may take; None: `$LLMDISTILL_CACHE_BYTES`, or 50 GB. Copies that were used least
            recently go first; an open one stays readable.
        pause: see `retrying`.

    Raises:
        DataError: the program for this kind of address is not installed.
    """

    def __init__(
        self, address: str, local: Path | None = None, local_bytes: int | None = None, pause: float | None = None
    ) -> None:
        import fsspec

        self.where = address.rstrip("/")
        scheme = address.partition("://")[0]
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.where)
        except (ImportError, ValueError) as error:
            raise DataError(str(error), where=address, fix=f"pip install the fsspec back end of {scheme}://") from None
        default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmdistill"
        folder = local or Path(os.environ.get(LOCAL_FOLDER, default))
        self._bound_folder = folder
        self._local = folder / hashlib.blake2b(self.where.encode(), digest_size=8).hexdigest()
        self._bound = int(os.environ.get(LOCAL_BYTES, 50e9)) if local_bytes is None else local_bytes
        self._pause = pause
        self._lock = threading.Lock()

    def names(self, suffix: str) -> list[str]:
        """See `Storage`."""

        def listed() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()
            try:
                return list(self._fs.ls(self._root, detail=True))
            except FileNotFoundError:
                return []

        entries = self._retry(listed, "list the folder")
        names = [entry["name"].rsplit("/", 1)[1] for entry in entries if entry["type"] == "file"]
        return sorted(name for name in names if name.endswith(suffix) and name[0] != ".")

    def size(self, name: str) -> int:
        """See `Storage`."""

        def size() -> int:
            self._fs.invalidate_cache()
            try:
                return int(self._fs.info(self._path(name))["size"])
            except FileNotFoundError:
                return -1

        return self._retry(size, f"ask for {name}")

    def local(self, name: str) -> Path:
        """See `Storage`.

        Raises:
            DataError: there is no such object, or it cannot be had whole.
        """
        copy = self._local / name
        size = self.size(name)
        # Indices are rewritten; shards never are.
        if copy.exists() and copy.stat().st_size == size and not name.startswith("index."):
            os.utime(copy)
            return copy
        if size < 0:
            raise DataError("does not exist", where=f"{self.where}/{name}")
        self._local.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._make_room(size)
        temporary = copy.with_name(f".{name}.{uuid.uuid4().hex}.tmp")

        def fetch() -> None:
            with self._fs.open(self._path(name), "rb", cache_type="none") as source, temporary.open("wb") as target:
                while chunk := source.read(8 << 20):
                    target.write(chunk)
            if (found := temporary.stat().st_size) != size:
                raise ShortReadError(f"expected {size} bytes, found {found}")

        try:
            self._retry(fetch, f"read {name}")
            temporary.rename(copy)
        finally:
            temporary.unlink(missing_ok=True)
        return copy

    def put(self, name: str, payload: bytes) -> None:
        """See `Storage`."""

        def send() -> None:
            self._fs.pipe_file(self._path(name), payload, chunksize=PART_BYTES)
            self._fs.invalidate_cache()
            if (found := int(self._fs.info(self._path(name))["size"])) != len(payload):
                raise ShortReadError(f"sent {len(payload)} bytes, {found} arrived")

        self._retry(send, f"write {len(payload)} bytes to {name}")

    def set_aside(self, name: str) -> None:
        """See `Storage`."""
        aside = f"{self._root.rsplit('/', 1)[0]}/damaged/{name}"
        if self.size(name) >= 0:
            self._retry(lambda: self._fs.mv(self._path(name), aside), f"move {name}")
        (self._local / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """See `Storage`; object storage has none, parts of unfinished puts are not objects."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _retry(self, action: Callable[[], _T], what: str) -> _T:
        return retrying(action, what, self.where, pause=PAUSE if self._pause is None else self._pause)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used copies until `size` more bytes fit."""
        # Other processes of the machine share the folder, so files may go at any time.
        found = []
        for file in self._bound_folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if file.is_file():
                    status = file.stat()
                    found.append((status.st_mtime, status.st_size, file))
        total = sum(bytes_ for _, bytes_, _ in found) + size
        for _, bytes_, file in sorted(found, key=lambda entry: entry[0]):
            if total <= self._bound:
                return
            if not file.name.endswith(".tmp") or time.time() - file.stat().st_mtime > 3600:
                file.unlink(missing_ok=True)
                total -= bytes_
        if total > self._bound:
            raise DataError(
                f"a shard of {size} bytes does not fit the local cache of {self._bound} bytes",
                where=str(self._bound_folder),
                fix=f"raise ${LOCAL_BYTES}",
            )
