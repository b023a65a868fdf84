"""Copying records between caches as they lie: nothing is decoded, so nothing is lost.

The destination gets each record once, in shards of a chosen size and compression; records that it has already are left
alone, so an interrupted merge is continued by the same command. Merging one cache into an empty folder rewrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llmdistill.cache.captures import distinct, require_one_of
from llmdistill.cache.codec import pack_fields
from llmdistill.cache.hidden import SidecarFile, put_sidecar
from llmdistill.cache.index import (
    open_shards,
    read_captures,
    shard_folder,
    shard_names,
    shard_storage,
    write_index,
)
from llmdistill.cache.schema import columns
from llmdistill.cache.shard import OFFSETS, Compression, put_shard, shard_name
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec


@dataclass(frozen=True)
class Merge:
    """What was done."""

    added: int
    already: int
    """Records that the destination had, or that came twice."""
    shards: int
    """Shards written."""


@dataclass
class StoredParts:
    """One record as it lies in a shard."""

    key: bytes
    scalars: dict[str, np.generic]
    """Its entry of each column per record, but the key."""
    source: str
    parts: dict[str, np.ndarray]
    """As of `ShardFile.record`."""
    engine_version: str
    spec: CaptureSpec
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """About the size of the record."""
        hidden = sum(part.numel() * part.element_size() for part in self.hidden.values())
        return sum(part.nbytes for part in self.parts.values()) + hidden


def merge(
    destination: Path | str,
    sources: Sequence[Path | str],
    compression: Compression = "none",
    shard_bytes: int = 64 << 20,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Merge:
    """Copy the records of `sources` into `destination`, which may be new.

    Args:
        destination: cache to write.
        sources: caches to read. One cache at least, a source or the destination, has every capture of all of them:
            records of several teachers come together where one configuration named these, and not here.
        compression: of the new shards.
        shard_bytes: a new shard is closed when its records reach this size, uncompressed.
        on_progress: called with the number of records read.

    Raises:
        DataError: a source is empty or damaged, or the specs differ.
    """
    have: set[bytes] = set()
    held: dict[Path | str, list[CaptureSpec]] = {}
    for shard in open_shards(destination):
        held.setdefault(destination, []).append(shard.spec)
        have.update(map(bytes, shard.stored("keys")))
    for source in sources:
        if not (names := shard_names(source)):
            raise DataError("the cache holds no shard", where=str(source))
        # All headers before any record: a wrong source must not leave half a merge behind.
        held[source] = [shard.spec for shard in open_shards(source, names)]
    captures = max((distinct(specs) for specs in held.values()), key=len)
    for cache, specs in held.items():
        for spec in specs:
            require_one_of(spec, captures, str(cache))
    read = added = shards = 0
    batches: list[list[StoredParts]] = [[] for _ in captures]
    sizes = [0] * len(captures)

    def flush(number: int) -> None:
        nonlocal shards
        if batches[number]:
            write_stored(destination, batches[number], captures[number], compression)
            shards, sizes[number], batches[number] = shards + 1, 0, []

    for record in (record for source in sources for record in stored_records(source)):
        read += 1
        on_progress(read)
        if record.key in have:
            continue
        have.add(record.key)
        added += 1
        number = captures.index(record.spec)
        batches[number].append(record)
        sizes[number] += record.bytes
        if sizes[number] >= shard_bytes:
            flush(number)
    for number in range(len(captures)):
        flush(number)
    write_index(destination, [capture for cache in (destination, *sources) for capture in read_captures(cache)])
    return Merge(added, read - added, shards)


def stored_records(cache: Path | str) -> Iterator[StoredParts]:
    """All records of a cache, shard by shard, duplicates included.

    Raises:
        DataError: a record is damaged.
    """
    storage = shard_storage(cache)
    for name in shard_names(cache):
        with ShardFile(storage.local(name)) as shard:
            sidecar = SidecarFile(shard_folder(cache), name) if shard.spec.hidden_layers else None
            keys, sources = shard.stored("keys"), shard.sources
            scalars = {column.name: shard.stored(column.name) for column in shard.columns if column.per == "record"}
            del scalars["keys"]
            for position in range(len(keys)):
                yield StoredParts(
                    bytes(keys[position]),
                    {key: values[position] for key, values in scalars.items()},
                    sources[int(scalars["source_ids"][position])],
                    shard.record(position),
                    shard.metadata["engine_version"],
                    shard.spec,
                    sidecar.stored(position) if sidecar else {},
                )


def write_stored(
    cache: Path | str, records: Sequence[StoredParts], spec: CaptureSpec, compression: Compression
) -> None:
    """Commit stored records as one shard (and its sidecar)."""
    folder = shard_folder(cache)
    name = shard_name([record.key for record in records])
    sources = sorted({record.source for record in records})
    versions = sorted({record.engine_version for record in records})
    if spec.hidden_layers:
        hidden = {key: torch.cat([record.hidden[key] for record in records]) for key in records[0].hidden}
        rows = [int(record.parts["supervised"].sum()) for record in records]
        put_sidecar(folder, name, [record.key for record in records], rows, hidden)
    put_shard(folder, name, assemble(records, spec, sources), spec, sources, ", ".join(versions), compression)


def assemble(records: Sequence[StoredParts], spec: CaptureSpec, sources: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of a shard that holds these records; the inverse of `ShardFile.record`."""
    tensors: dict[str, np.ndarray] = {}
    lengths: dict[str, list[int]] = {}
    for column in columns(spec):
        if column.per == "record":
            continue
        if column.per != "bound":
            parts = [record.parts[column.name] for record in records]
            joined = np.concatenate(parts)
            tensors[column.name] = pack_fields(joined, column.bits) if column.bits else joined
            lengths.setdefault(OFFSETS.get(column.per, ""), [len(part) for part in parts])
    for column in columns(spec):
        if column.per == "bound":
            tensors[column.name] = np.concatenate([[0], np.cumsum(lengths[column.name], dtype=np.int64)])
        elif column.name == "keys":
            tensors["keys"] = np.frombuffer(b"".join(record.key for record in records), np.uint8).reshape(
                len(records), -1
            )
        elif column.name == "source_ids":
            tensors["source_ids"] = np.array([sources.index(record.source) for record in records], np.uint16)
        elif column.per == "record":
            tensors[column.name] = np.array([record.scalars[column.name] for record in records], column.dtype)
    return {column.name: np.ascontiguousarray(tensors[column.name]) for column in columns(spec)}
