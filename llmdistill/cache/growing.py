"""Training on a cache that the fleet still fills.

The cache is taken in segments: lists of shard names, each what had been committed when the one before was used up. A
segment is an immutable cache of its own for `CacheReader` and `plan_steps`. The segments taken so far are the whole
state: a run that is resumed with them sees the same records in the same order, however far the fleet has come since.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmdistill.cache.index import read_index, shard_names
from llmdistill.cache.reader import CacheReader
from llmdistill.errors import DataError


class GrowingCache:
    """The segments of a cache.

    Args:
        cache: folder or address; shards may be committed at any time, index.json says that no more will come.
        segments: what a run before has taken, `segments` of its `GrowingCache`.
    """

    def __init__(self, cache: Path | str, segments: Sequence[Sequence[str]] = ()) -> None:
        self._cache = cache
        self.segments: list[list[str]] = [list(segment) for segment in segments]
        """Shard names of each segment taken; plain data for a checkpoint."""

    def readers(
        self, min_shards: int = 1, poll_seconds: float = 5.0, timeout_seconds: float = 3600.0
    ) -> Iterator[CacheReader]:
        """Readers of the segments: those taken before first, then new ones as they come.

        Args:
            min_shards: a segment has at least so many, but for the last one.
            poll_seconds: pause between two looks at the cache.
            timeout_seconds: how long to wait for a new shard.

        Raises:
            DataError: a shard of a segment is gone or damaged, or none came in time.
        """
        for segment in list(self.segments):
            yield CacheReader(self._cache, segment)
        while (fresh := self._next(min_shards, poll_seconds, timeout_seconds)) is not None:
            self.segments.append(fresh)
            yield CacheReader(self._cache, fresh)

    def _next(self, min_shards: int, poll_seconds: float, timeout_seconds: float) -> list[str] | None:
        taken = {name for segment in self.segments for name in segment}
        seen, since = 0, time.monotonic()
        while True:
            # In this order: a shard that is committed between the two looks must not be missed.
            complete = read_index(self._cache) is not None
            fresh = [name for name in shard_names(self._cache) if name not in taken]
            if len(fresh) >= min_shards or (complete and fresh):
                return fresh
            if complete:
                return None
            if len(fresh) > seen:
                seen, since = len(fresh), time.monotonic()
            if time.monotonic() - since > timeout_seconds:
                raise DataError(
                    f"no new shard in {timeout_seconds:.0f} s, and the cache is not complete",
                    where=str(self._cache),
                    fix="run `llmdistill generate` again; the training continues from its checkpoint",
                )
            time.sleep(poll_seconds)
