"""Reading one shard, as a whole or record by record.

The file is read with `pread`, not mapped: mapped pages count as resident memory and a file that is cut short while it
is mapped kills the process, where a short read is an error that names the file. Every record is compared with its own
checksum when it is read.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from llmdistill.cache.blocks import decompress_block
from llmdistill.cache.codec import unpack_fields
from llmdistill.cache.schema import FORMAT, VERSION, Column, columns
from llmdistill.cache.shard import DTYPES, OFFSETS, ShardSummary, bounds_of, record_checksum
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec

_DTYPES = {code: name for name, code in DTYPES.items()}
_METADATA = frozenset(
    ("format", "version", "spec", "engine_version", "sources", "compression", "records", "tokens", "rows", "checksum")
)
_LARGEST_HEADER = 100_000_000
FIX = "run `llmdistill cache repair`, then `llmdistill generate`: only the lost records are made anew"


def damaged(what: str, path: Path) -> DataError:
    """The error for a shard that cannot be trusted."""
    return DataError(what, where=str(path), fix=FIX)


class ShardFile:
    """An open shard.

    Args:
        path: a local file.

    Raises:
        DataError: the file is missing, cut, longer than its header says, or not a shard of this format and version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise damaged(f"cannot be opened: {error.strerror}", path) from None
        self._last: dict[str, tuple[int, np.ndarray]] = {}
        self.metadata, self._tensors = self._read_header()
        self.spec = self._spec()
        self.columns = columns(self.spec)
        self.compressed = self.metadata["compression"] == "zstd"
        self._data = [column for column in self.columns if column.per not in ("record", "bound")]
        self._require_tensors()

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def summary(self) -> ShardSummary:
        """The index entry, from the header alone."""
        said = self.metadata
        size = os.fstat(self._fd).st_size
        return ShardSummary(
            self.path.name, int(said["records"]), int(said["tokens"]), int(said["rows"]), size, said["checksum"]
        )

    @property
    def sources(self) -> list[str]:
        """Names that `source_ids` count."""
        return list(json.loads(self.metadata["sources"]))

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors in the file."""
        return list(self._tensors)

    def stored(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file."""
        dtype, shape, offset = self._tensors[name]
        return self._read(dtype, shape, offset)

    def column(self, column: Column) -> np.ndarray:
        """A whole column, decompressed, packed fields still packed."""
        if not (self.compressed and column.blocked):
            return self.stored(column.name)
        bounds = bounds_of(column, self.offsets)[self._block_records]
        blocks = [
            self._block(column, number, int(bounds[number + 1] - bounds[number])) for number in range(len(bounds) - 1)
        ]
        return np.concatenate(blocks)

    @functools.cached_property
    def offsets(self) -> Mapping[str, np.ndarray]:
        """The `bound` columns."""
        return {column.name: self.stored(column.name) for column in self.columns if column.per == "bound"}

    @functools.cached_property
    def checksums(self) -> np.ndarray:
        """uint32 [S]."""
        return self.stored("record_checksums")

    def record(self, position: int) -> dict[str, np.ndarray]:
        """The record's part of each column per token, row, entry, head and tail; packed fields a byte each.

        Raises:
            DataError: the bytes are not those that were written.
        """
        bounds = self._bounds_at(position)
        parts = {column.name: self._part(column, position, bounds) for column in self._data}
        dtype, _, offset = self._tensors["record_checksums"]
        if record_checksum(list(parts.values())) != int(self._read(dtype, (1,), offset + 4 * position)[0]):
            raise damaged(f"record {position} is damaged: its checksum differs", self.path)
        return parts

    @functools.cached_property
    def _block_records(self) -> np.ndarray:
        return self.stored("block_records")

    def _pair(self, name: str, index: int) -> tuple[int, int]:
        """Entries index and index + 1 of a `bound` column, or of entries less heads, without reading all of it."""
        dtype, _, offset = self._tensors[name]
        first, second = self._read(dtype, (2,), offset + 8 * index).tolist()
        return first, second

    def _bounds_at(self, position: int) -> dict[str, tuple[int, int]]:
        """Where a record starts and stops along each axis."""
        found = {per: self._pair(name, position) for per, name in OFFSETS.items() if name in self._tensors}
        if "head" in found:
            (entry, entry_stop), (head, head_stop) = found["entry"], found["head"]
            found["tail"] = (entry - head, entry_stop - head_stop)
        return found

    def _part(self, column: Column, position: int, bounds: dict[str, tuple[int, int]]) -> np.ndarray:
        start, stop = bounds[column.per]
        if self.compressed and column.blocked:
            number = int(np.searchsorted(self._block_records, position, side="right")) - 1
            first_record, end_record = (int(record) for record in self._block_records[number : number + 2])
            first = self._bounds_at(first_record)[column.per][0]
            end = self._bounds_at(end_record - 1)[column.per][1]
            block = self._block(column, number, end - first)
            return block[start - first : stop - first].copy()
        dtype, shape, offset = self._tensors[column.name]
        if column.bits:
            first_byte, end_byte = start * column.bits // 8, -(-stop * column.bits // 8)
            packed = self._read(dtype, (end_byte - first_byte,), offset + first_byte)
            return unpack_fields(packed, column.bits, start - first_byte * 8 // column.bits, stop - start)
        return self._read(dtype, (stop - start, *shape[1:]), offset + start * column.item)

    def _block(self, column: Column, number: int, count: int) -> np.ndarray:
        known, block = self._last.get(column.name, (-1, None))
        if known == number and block is not None:
            return block
        start, stop = self._frame_bounds[column.name][number : number + 2]
        _, _, offset = self._tensors[column.name]
        try:
            frame = self._read("uint8", (int(stop - start),), offset + int(start)).tobytes()
            block = decompress_block(column, frame, count)
        except (zstandard.ZstdError, ValueError) as error:
            raise damaged(f"block {number} of {column.name} is damaged: {error}", self.path) from None
        self._last[column.name] = (number, block)
        return block

    @functools.cached_property
    def _frame_bounds(self) -> dict[str, np.ndarray]:
        return {column.name: self.stored(f"{column.name}.blocks") for column in self._data if column.blocked}

    def _read(self, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
        values = np.empty(shape, dtype)
        if values.nbytes:
            view, done = memoryview(values.reshape(-1).view(np.uint8).data), 0
            while done < values.nbytes:
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    raise damaged(f"expected {values.nbytes} bytes at {offset}, found {done}", self.path)
                done += count
        return values

    def _read_header(self) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int]]]:
        size = os.fstat(self._fd).st_size
        head = os.pread(self._fd, 64, 0)
        if head.startswith(b"version https://git-lfs"):
            raise damaged("is a Git LFS pointer and not the file itself (`git lfs pull` fetches it)", self.path)
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise damaged(
                f"cannot be a shard: expected a header of {length} bytes, found {size} bytes in all", self.path
            )
        try:
            header: dict[str, Any] = json.loads(os.pread(self._fd, length, 8))
            metadata = {str(key): str(value) for key, value in header.pop("__metadata__").items()}
            tensors, end = {}, 0
            for name, said in header.items():
                dtype, shape = _DTYPES[said["dtype"]], tuple(int(count) for count in said["shape"])
                start, stop = (int(offset) for offset in said["data_offsets"])
                if start < 0 or stop - start != math.prod(shape) * np.dtype(dtype).itemsize:
                    raise ValueError(f"{name} has a shape that does not fit its bytes")
                tensors[name], end = (dtype, shape, 8 + length + start), max(end, stop)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(f"the header cannot be read: {type(error).__name__}: {error}", self.path) from None
        if size != 8 + length + end:
            raise damaged(f"expected {8 + length + end} bytes, found {size}", self.path)
        return metadata, tensors

    def _spec(self) -> CaptureSpec:
        said = self.metadata
        if said.get("format") != FORMAT or said.get("version") != VERSION:
            raise DataError(
                f"this is format {said.get('format')!r} version {said.get('version')!r},"
                f" and this program reads {FORMAT!r} version {VERSION!r}",
                where=str(self.path),
                fix="use the llmdistill that wrote it, or generate anew",
            )
        if missing := _METADATA - said.keys():
            raise damaged(f"the header lacks {', '.join(sorted(missing))}", self.path)
        try:
            json.loads(said["sources"])
            return CaptureSpec(**json.loads(said["spec"]))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"the capture spec cannot be read: {error}", self.path) from None

    def _require_tensors(self) -> None:
        try:
            counts = {"record": int(self.metadata["records"]), "token": int(self.metadata["tokens"])}
            counts |= {"bound": counts["record"] + 1, "row": int(self.metadata["rows"])}
            if self.spec.kind != "top_k":
                counts["entry"] = self._pair("entry_offsets", counts["record"] - 1)[1]
            if self.spec.kind == "head_tail":
                counts["head"] = self._pair("head_offsets", counts["record"] - 1)[1]
                counts["tail"] = counts["entry"] - counts["head"]
            for column in self.columns:
                dtype, shape, _ = self._tensors[column.name]
                if self.compressed and column.blocked:
                    expected, column_dtype = shape, "uint8"
                    self._tensors[f"{column.name}.blocks"], self._tensors["block_records"]
                else:
                    expected, column_dtype = column.shape(counts), column.dtype
                if shape != expected or dtype != column_dtype:
                    raise damaged(f"{column.name} is {dtype} {shape}, expected {column_dtype} {expected}", self.path)
        except (KeyError, ValueError, IndexError) as error:
            raise damaged(f"a tensor or an entry of the header is missing: {error}", self.path) from None
