"""Compressed files as streams. A file that ends too early is an error, never a shorter file."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO, cast

import zstandard

SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
_BLOCK = 1 << 16


def decompressed(stream: BinaryIO, compression: str | None) -> io.BufferedReader:
    """The contents of `stream`.

    Args:
        stream: an open file.
        compression: `gzip`, `zstd` or None. Either may consist of several members or frames.

    Reading raises EOFError, OSError or zstandard.ZstdError where the file is damaged.
    """
    if compression == "gzip":
        return io.BufferedReader(cast("io.RawIOBase", _GzipStream(fileobj=stream)), _BLOCK)
    if compression == "zstd":
        return io.BufferedReader(_ZstdStream(stream), _BLOCK)
    return io.BufferedReader(cast("io.RawIOBase", stream), _BLOCK)


class _GzipStream(gzip.GzipFile):
    """A seek backwards would decompress everything anew: readers that need one copy the contents instead."""

    def seekable(self) -> bool:
        return False


class _ZstdStream(io.RawIOBase):
    """zstandard's own reader takes a file that was cut short for one that ends there; this one does not."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._stream.read(_BLOCK)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the compressed data ends within a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(self._compressed)
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
