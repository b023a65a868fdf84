"""zstd for columns, in blocks of whole records, so that one record can be read without the others.

A compressed column `name` is a uint8 tensor `name` of zstd frames and an int64 tensor `name.blocks` [B + 1] of their
bounds; block b holds the records block_records[b] … block_records[b + 1] - 1. Before compression a column's bytes are
rearranged, because entropy coders see bytes: values of more than one byte go plane by plane (all first bytes, then all
second ones, …), and `Column.delta` columns are replaced by their differences first.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import zstandard

from llmdistill.cache.schema import Column

LEVEL = 3
ROWS_PER_BLOCK = 512
_local = threading.local()  # zstandard's contexts may not be shared between threads


def block_bounds(row_offsets: np.ndarray) -> np.ndarray:
    """int64 [B + 1]: records at which blocks start; a block closes when it holds `ROWS_PER_BLOCK` rows."""
    records = len(row_offsets) - 1
    bounds = [0]
    while bounds[-1] < records:
        stop = int(np.searchsorted(row_offsets, row_offsets[bounds[-1]] + ROWS_PER_BLOCK))
        bounds.append(min(max(stop, bounds[-1] + 1), records))
    return np.array(bounds, np.int64)


def compress_column(column: Column, values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [bytes] and their bounds int64 [B + 1]; `bounds` are the indices at which blocks start."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    frames = [compressor.compress(_rearrange(column, values[start:stop])) for start, stop in itertools.pairwise(bounds)]
    offsets = np.concatenate([[0], np.cumsum([len(frame) for frame in frames])]).astype(np.int64)
    return np.frombuffer(b"".join(frames), np.uint8), offsets


def decompress_block(column: Column, frame: bytes, count: int) -> np.ndarray:
    """The `count` indices of a block.

    Raises:
        zstandard.ZstdError: the frame is damaged.
        ValueError: it holds another number of bytes.
    """
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    size = count * column.item
    raw = _local.decompressor.decompress(frame, max_output_size=max(size, 1))
    if len(raw) != size:
        raise ValueError(f"a block of {column.name} holds {len(raw)} bytes, expected {size}")
    return _restore(column, raw, count)


def _rearrange(column: Column, values: np.ndarray) -> bytes:
    if column.delta and len(values):
        values = np.diff(values, axis=-1, prepend=values.dtype.type(0))  # unsigned: wraps
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, np.dtype(column.dtype).itemsize)
    return planes.T.tobytes()


def _restore(column: Column, raw: bytes, count: int) -> np.ndarray:
    dtype = np.dtype(column.dtype)
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(dtype)
    values = values.reshape((count,) if column.width is None else (count, column.width))
    return np.cumsum(values, axis=-1, dtype=dtype) if column.delta else values
