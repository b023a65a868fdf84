"""Writing one shard: records → columns → one safetensors file, committed whole."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmdistill.cache.blocks import block_bounds, compress_column
from llmdistill.cache.codec import encode_ids, high_bits, pack_fields, unpack_fields
from llmdistill.cache.rows import encode_rows
from llmdistill.cache.schema import FORMAT, SHARD_SUFFIX, VERSION, Column, columns
from llmdistill.cache.storage import open_storage
from llmdistill.types import (
    FINISH_REASONS,
    RECORD_KEY_BYTES,
    CaptureSpec,
    ChunkRows,
    HeadTailRows,
    Record,
    SampledRows,
    TeacherRows,
)

Compression = Literal["none", "zstd"]
DTYPES = {
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
}
"""numpy's names and safetensors'."""
OFFSETS = {"token": "token_offsets", "row": "row_offsets", "entry": "entry_offsets", "head": "head_offsets"}
"""Which tensor bounds the records along an axis; `tail` is `entry` less `head`."""


@dataclass(frozen=True)
class ShardSummary:
    """What the index keeps of a shard."""

    name: str
    records: int
    tokens: int
    rows: int
    bytes: int
    checksum: str


def shard_name(keys: Sequence[bytes]) -> str:
    """File name of the shard that holds these records: a hash of their keys, whatever their order."""
    return hashlib.blake2b(b"".join(sorted(keys)), digest_size=16).hexdigest() + SHARD_SUFFIX


def write_shard(
    folder: Path | str,
    records: Sequence[Record],
    spec: CaptureSpec,
    engine_version: str,
    compression: Compression = "none",
) -> ShardSummary:
    """Encode records and commit them as one file of `folder` (and a sidecar file where the spec has hidden layers).

    Args:
        folder: local folder or fsspec address, `index.shard_folder` of a cache.
        records: at least one; all captured under `spec`.
        spec: what was captured.
        engine_version: name and version of the engine that answered, for people.
        compression: `zstd` stores entries and statistics in zstd blocks, about a fifth smaller.

    Raises:
        ValueError: a record holds ids outside the vocabulary or impossible log-probabilities.
        DataError: the file system refuses (disk full and the like); nothing is left behind.
    """
    name = shard_name([record.key for record in records])
    if spec.hidden_layers:
        from llmdistill.cache.hidden import write_sidecar

        # Before the shard: a shard that is there says that all of it is there.
        write_sidecar(folder, name, records, spec)
    sources = sorted({record.source for record in records})
    return put_shard(folder, name, encode_records(records, spec, sources), spec, sources, engine_version, compression)


def put_shard(
    folder: Path | str,
    name: str,
    tensors: Mapping[str, np.ndarray],
    spec: CaptureSpec,
    sources: Sequence[str],
    engine_version: str,
    compression: Compression,
) -> ShardSummary:
    """Commit encoded columns; arguments as of `write_shard`, `tensors` uncompressed."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "spec": json.dumps(spec.facts(), sort_keys=True),
        "engine_version": engine_version,
        "sources": json.dumps(list(sources)),
        "compression": compression,
        "records": str(len(tensors["keys"])),
        "tokens": str(int(tensors["token_offsets"][-1])),
        "rows": str(int(tensors["row_offsets"][-1])),
    }
    stored = _compress(tensors, spec) if compression == "zstd" else dict(tensors)
    metadata["checksum"] = checksum(metadata, stored)
    payload = serialise(stored, metadata)
    open_storage(folder).put(name, payload)
    return ShardSummary(
        name, len(tensors["keys"]), int(metadata["tokens"]), int(metadata["rows"]), len(payload), metadata["checksum"]
    )


def encode_records(records: Sequence[Record], spec: CaptureSpec, sources: Sequence[str]) -> dict[str, np.ndarray]:
    """All columns of `schema.columns`, uncompressed.

    Raises:
        ValueError: ids outside the vocabulary, impossible log-probabilities, no record, more than 65,536 sources.
    """
    if not records:
        raise ValueError("a shard needs a record")
    rows = [record.rows for record in records]
    tokens_N = np.concatenate([record.token_ids_N for record in records])
    low_N, _ = encode_ids(tokens_N, spec.vocabulary_size)
    tensors: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(record.key for record in records), np.uint8).reshape(-1, RECORD_KEY_BYTES),
        "splits": np.array([record.split for record in records], np.uint64),
        "finish_reasons": np.array([FINISH_REASONS.index(record.finish_reason) for record in records], np.uint8),
        "source_ids": np.array([sources.index(record.source) for record in records], np.uint16),
        "token_offsets": _offsets([len(record.token_ids_N) for record in records]),
        "row_offsets": _offsets([int(record.supervised_N.sum()) for record in records]),
        "token_ids_low": low_N,
        "token_ids_high": pack_fields(tokens_N >> 16, high_bits(spec.vocabulary_size)),
        "supervised": pack_fields(np.concatenate([record.supervised_N for record in records]), 1),
        **encode_rows(rows, spec),
    }
    if spec.kind != "top_k":
        tensors["entry_offsets"] = _offsets([_entries(part) for part in rows])
    if spec.kind == "head_tail":
        heads = [part for part in rows if isinstance(part, HeadTailRows)]
        tensors["head_offsets"] = _offsets([len(part.head_logprobs_H) for part in heads])
    tensors["record_checksums"] = record_checksums(tensors, spec)
    return {column.name: np.ascontiguousarray(tensors[column.name]) for column in columns(spec)}


def _entries(rows: TeacherRows) -> int:
    if isinstance(rows, ChunkRows):
        return len(rows.logprobs_E)
    return len(rows.ids_E) if isinstance(rows, (SampledRows, HeadTailRows)) else 0


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.array([0, *np.cumsum(lengths, dtype=np.int64).tolist()], np.int64)


def bounds_of(column: Column, offsets: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64 [S + 1]: where each record starts along the column's first axis."""
    if column.per == "tail":
        drawn: np.ndarray = offsets["entry_offsets"] - offsets["head_offsets"]
        return drawn
    return offsets[OFFSETS[column.per]]


def record_checksums(tensors: Mapping[str, np.ndarray], spec: CaptureSpec) -> np.ndarray:
    """uint32 [S]: for each record `record_checksum` of its part of every column."""
    data = [column for column in columns(spec) if column.per not in ("record", "bound")]
    bounds = {column.name: bounds_of(column, tensors).tolist() for column in data}
    found = np.zeros(len(tensors["keys"]), np.uint32)
    for record in range(len(found)):
        parts = []
        for column in data:
            start, stop = bounds[column.name][record : record + 2]
            values = tensors[column.name]
            parts.append(unpack_fields(values, column.bits, start, stop - start) if column.bits else values[start:stop])
        found[record] = record_checksum(parts)
    return found


def record_checksum(parts: Sequence[np.ndarray]) -> int:
    """CRC-32 over a record's bytes, column after column in the order of the schema, packed fields as a byte each."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"", crc)
    return crc


def checksum(metadata: Mapping[str, str], stored: Mapping[str, np.ndarray]) -> str:
    """blake2b-128 of a file: its metadata without the checksum, then its tensors by name."""
    digest = hashlib.blake2b(digest_size=16)
    said = {key: value for key, value in metadata.items() if key != "checksum"}
    digest.update(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(stored):
        array: np.ndarray[Any, Any] = np.ascontiguousarray(stored[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def serialise(stored: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: eight bytes of length, the header, the tensors.

    The library's own `save` writes the metadata in an order that changes from call to call; here equal contents are
    equal bytes, whoever writes them.
    """
    # Wide types first, so that every tensor lies at a multiple of its width.
    names = sorted(stored, key=lambda name: (-stored[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    parts, end = [], 0
    for name in names:
        array = np.ascontiguousarray(stored[name])
        code = DTYPES[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        parts.append(array.tobytes())
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _compress(tensors: Mapping[str, np.ndarray], spec: CaptureSpec) -> dict[str, np.ndarray]:
    records = block_bounds(tensors["row_offsets"])
    stored = {"block_records": records}
    for column in columns(spec):
        if column.blocked:
            bounds = bounds_of(column, tensors)[records]
            stored[column.name], stored[f"{column.name}.blocks"] = compress_column(column, tensors[column.name], bounds)
        else:
            stored[column.name] = tensors[column.name]
    return stored
