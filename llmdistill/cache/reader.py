"""Reading records back: compressed slices of shards, decoded on the device that needs them."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch

from llmdistill.cache.captures import common, require_readable_together
from llmdistill.cache.codec import unpack_fields
from llmdistill.cache.index import shard_storage
from llmdistill.cache.rows import EncodedRows
from llmdistill.cache.schema import SHARD_SUFFIX, columns
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import DataError
from llmdistill.types import FINISH_REASONS, CaptureSpec

__all__ = ["CacheReader", "EncodedRows", "KeyList", "StoredRecord"]
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class StoredRecord:
    """One record, its rows still encoded."""

    key: bytes
    token_ids_N: torch.Tensor
    """int64 [N]."""
    supervised_N: torch.Tensor
    """bool [N], see `types.Record`."""
    rows: EncodedRows
    finish_reason: str
    source: str


class KeyList(Sequence[bytes]):
    """Keys as a sequence of bytes, without a Python object for each."""

    def __init__(self, keys: np.ndarray) -> None:
        self.array = keys
        """uint8 [S, 16]."""

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> KeyList: ...
    def __getitem__(self, index: int | slice) -> bytes | KeyList:
        return KeyList(self.array[index]) if isinstance(index, slice) else self.array[index].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return map(bytes, self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(bytes.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


class CacheReader:
    """Random access to the records of a cache, in the order of their keys.

    The order of keys depends neither on who wrote which shard nor on when, so "record 17" is the same record after a
    crash, with another number of replicas, or in a copy. A record that lies in two shards (two fleets at work on the
    same prompts) is read once. In memory lie about 45 bytes a record; at most 256 shards are open. Threads may share a
    reader.

    Args:
        cache: local folder or fsspec address of the cache.
        shards: names of the shards to read; None: all that are committed now.

    Raises:
        DataError: no shards, damaged ones, or shards that cannot be read together.
    """

    def __init__(self, cache: Path | str, shards: Sequence[str] | None = None) -> None:
        self._storage = shard_storage(cache)
        self.shards: list[str] = list(self._storage.names(SHARD_SUFFIX) if shards is None else shards)
        """Names of the shards that are read."""
        if not self.shards:
            raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        small: dict[str, list[np.ndarray]] = {}
        self.specs: list[CaptureSpec] = []
        """The captures of the cache; they differ in the teacher at most, see `captures.MAKERS`."""
        names: dict[str, int] = {}
        for number in range(len(self.shards)):
            with ShardFile(self._storage.local(self.shards[number])) as shard:
                if shard.spec not in self.specs:
                    self.specs.append(shard.spec)
                    require_readable_together(shard.spec, self.specs[0], str(shard.path))
                for name, values in self._small(shard, number, names).items():
                    small.setdefault(name, []).append(values)
        self.spec: CaptureSpec = common(self.specs)
        """What holds of all records, see `captures.common`."""
        self.sources: list[str] = list(names)
        """Names that `source_numbers` count."""
        self._take({name: np.concatenate(values) for name, values in small.items()})

    @staticmethod
    def _small(shard: ShardFile, number: int, names: dict[str, int]) -> dict[str, np.ndarray]:
        tokens, rows = shard.offsets["token_offsets"], shard.offsets["row_offsets"]
        numbers = np.array([names.setdefault(name, len(names)) for name in shard.sources], np.uint16)
        sources = shard.stored("source_ids")
        if len(sources) and sources.max() >= len(numbers):
            raise DataError("source_ids are out of range", where=str(shard.path))
        return {
            "keys": shard.stored("keys"),
            "splits": shard.stored("splits"),
            "finish_reasons": shard.stored("finish_reasons"),
            "sources": numbers[sources],
            "tokens": np.diff(tokens).astype(np.int32),
            "rows": np.diff(rows).astype(np.int32),
            "shards": np.full(len(tokens) - 1, number, np.int32),
            "positions": np.arange(len(tokens) - 1, dtype=np.int32),
        }

    def _take(self, small: dict[str, np.ndarray]) -> None:
        order = np.argsort(small["keys"].view("V16")[:, 0], kind="stable")
        keys = small["keys"][order]
        # Shards were visited by name: of equal keys the first is kept, whatever was written when.
        first = np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])
        self.duplicates = int(len(first) - first.sum())
        """Records that another shard holds too, and that are left out here."""
        order = order[first]
        self.keys = KeyList(keys[first])
        """Record keys, ascending."""
        self.splits: np.ndarray = small["splits"][order]
        """uint64 [S]: hashes of the prompts."""
        self.token_counts: np.ndarray = small["tokens"][order]
        """int32 [S]: tokens of each record."""
        self.row_counts: np.ndarray = small["rows"][order]
        """int32 [S]: supervised rows of each record."""
        self.source_numbers: np.ndarray = small["sources"][order]
        """uint16 [S]: index into `sources`."""
        self.shard_numbers: np.ndarray = small["shards"][order]
        """int32 [S]: index into `shards`."""
        self._positions = small["positions"][order]
        self._finish_reasons = small["finish_reasons"][order]

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training records and of the held-out ones, for a held-out share 0 ≤ `held_out` < 1."""
        is_held_out = self.splits < np.uint64(min(int(held_out * 2**64), 2**64 - 1))
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

    def row_means(self, name: str) -> np.ndarray:
        """Mean of a column per row over the rows of each record: float64 [S]; NaN where there are no rows.

        Args:
            name: `actual_logprobs`, `entropies` or `mass`.

        """

        def means_of(shard: ShardFile) -> np.ndarray:
            column = next(column for column in shard.columns if column.name == name)
            lengths = np.diff(shard.offsets["row_offsets"])
            record_R = np.repeat(np.arange(len(lengths)), lengths)
            sums = np.bincount(record_R, shard.column(column).astype(np.float64), len(lengths))
            means: np.ndarray = np.divide(sums, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)
            return means

        return self._of_shards(means_of)

    def token_digests(self) -> np.ndarray:
        """A hash of each record's tokens and of which are supervised: opaque values of 16 bytes [S]."""

        def digests_of(shard: ShardFile) -> np.ndarray:
            bounds = shard.offsets["token_offsets"].tolist()
            columns = [(shard.column(column), column.bits) for column in shard.columns if column.per == "token"]
            parts = [unpack_fields(values, bits, 0, bounds[-1]) if bits else values for values, bits in columns]
            found = [
                hashlib.blake2b(b"".join(part[start:stop].tobytes() for part in parts), digest_size=16).digest()
                for start, stop in itertools.pairwise(bounds)
            ]
            return np.array(found, "V16")

        return self._of_shards(digests_of)

    def _of_shards(self, values: Callable[[ShardFile], np.ndarray]) -> np.ndarray:
        """A value for each record [S], from those of each shard."""
        parts = [values(self._shard(number)) for number in range(len(self.shards))]
        starts = np.cumsum([0, *map(len, parts)])
        found: np.ndarray = np.concatenate(parts)[starts[self.shard_numbers] + self._positions]
        return found

    def row_bytes(self) -> int:
        """About how many bytes an encoded row takes in memory."""
        per_entry = max(self.spec.top_k, self.spec.head_size + self.spec.draws // 2, 1)
        items = {"row": 1, "entry": per_entry, "head": self.spec.head_size, "tail": per_entry}
        return sum(items[column.per] * column.item for column in columns(self.spec) if column.per in items)

    def read(self, number: int) -> StoredRecord:
        """Record `number`, 0 … len - 1.

        Raises:
            DataError: the shard is damaged there.
        """
        shard = self._shard(int(self.shard_numbers[number]))
        parts = shard.record(int(self._positions[number]))
        token_ids = parts["token_ids_low"].astype(np.int64)
        if "token_ids_high" in parts:
            token_ids |= parts["token_ids_high"].astype(np.int64) << 16
        names = {column.name for column in shard.columns if column.per in ("row", "entry", "head", "tail")}
        return StoredRecord(
            key=self.keys[number],
            token_ids_N=torch.from_numpy(token_ids),
            supervised_N=torch.from_numpy(parts["supervised"].astype(bool)),
            rows=EncodedRows(self.spec, {name: _tensor(part) for name, part in parts.items() if name in names}),
            finish_reason=FINISH_REASONS[int(self._finish_reasons[number])],
            source=self.sources[int(self.source_numbers[number])],
        )

    def _shard(self, number: int) -> ShardFile:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            shard = ShardFile(self._storage.local(self.shards[number]))
            self._open[number] = shard
            if len(self._open) > _OPEN_SHARDS:
                # Not closed here: another thread may be reading; the last reference closes it.
                self._open.popitem(last=False)
            return shard


def _tensor(part: np.ndarray) -> torch.Tensor:
    # torch has no concatenation of uint16; int16 holds the same bits.
    return torch.from_numpy(part.view(np.int16) if part.dtype == np.uint16 else part)
