"""Several caches read as one, such as the teacher's text and the student's of some rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from llmdistill.cache.captures import MAKERS, distinct
from llmdistill.cache.reader import CacheReader, KeyList, StoredRecord
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec

_WHO = ("mode", *MAKERS)
"""Fields of a capture spec that say nothing about how rows are stored."""


class JoinedReader(CacheReader):
    """The records of the first reader, then those of the second, and so on; of equal ones all.

    Args:
        readers: at least one.

    Raises:
        DataError: their rows are stored differently.
    """

    def __init__(self, readers: Sequence[CacheReader]) -> None:
        for reader in readers[1:]:
            _require_same_rows(reader.spec, readers[0].spec)
        self.readers = readers
        self.spec = readers[0].spec
        self.specs = distinct([spec for reader in readers for spec in reader.specs])
        self.shards = [shard for reader in readers for shard in reader.shards]
        self.sources = [source for reader in readers for source in reader.sources]
        self.starts: np.ndarray = np.cumsum([0, *map(len, readers)])
        """int64 [readers + 1]: the first record of each reader."""
        self.duplicates = sum(reader.duplicates for reader in readers)
        self.keys = KeyList(np.concatenate([reader.keys.array for reader in readers]))
        self.splits = np.concatenate([reader.splits for reader in readers])
        self.token_counts = np.concatenate([reader.token_counts for reader in readers])
        self.row_counts = np.concatenate([reader.row_counts for reader in readers])
        self.source_numbers = _shifted([reader.source_numbers for reader in readers], [len(r.sources) for r in readers])
        self.shard_numbers = _shifted([reader.shard_numbers for reader in readers], [len(r.shards) for r in readers])

    def read(self, number: int) -> StoredRecord:
        """Record `number`, 0 … len - 1."""
        owner = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.readers[owner].read(number - int(self.starts[owner]))


def _shifted(parts: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *counts[:-1]])
    joined: np.ndarray = np.concatenate(
        [part.astype(np.int32) + start for part, start in zip(parts, before, strict=True)]
    )
    return joined


def _require_same_rows(found: CaptureSpec, other: CaptureSpec) -> None:
    differing = [
        f"{field.name}: {getattr(found, field.name)!r} and {getattr(other, field.name)!r}"
        for field in dataclasses.fields(CaptureSpec)
        if field.name not in _WHO and getattr(found, field.name) != getattr(other, field.name)
    ]
    if differing:
        raise DataError("caches that are trained on together were captured differently\n  " + "\n  ".join(differing))
