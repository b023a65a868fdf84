"""Training on a cache that the fleet still fills.

The cache is taken in segments: lists of shard names, each what had been committed when the one before was used up. A
segment is an immutable cache of its own for `CacheReader` and `plan_steps`. The segments taken so far are the whole
state: a run that is resumed with them sees the same records in the same order, however far the fleet has come since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmdistill.cache.index import read_index, shard_folder, shard_names
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
        while not self.take(min_shards, poll_seconds, timeout_seconds):
            yield CacheReader(self._cache, self.segments[-1])

    def take(
        self,
        min_shards: int = 1,
        poll_seconds: float = 5.0,
        timeout_seconds: float = 3600.0,
        on_wait: Callable[[], None] = lambda: None,
    ) -> bool:
        """Wait for the next segment and add it to `segments`; arguments as of `readers`.

        Args:
            min_shards: a segment has at least so many, but for the last one.
            poll_seconds: pause between two looks at the cache.
            timeout_seconds: how long to wait for a new shard.
            on_wait: called at each look that finds too little.

        Returns:
            True where the cache is complete and nothing of it is left.

        Raises:
            DataError: no shard came in time.
        """
        taken = {name for segment in self.segments for name in segment}
        seen, since = 0, time.monotonic()
        while True:
            # In this order: a shard that is committed between the two looks must not be missed.
            complete = read_index(self._cache) is not None
            fresh = [name for name in shard_names(self._cache) if name not in taken]
            if len(fresh) >= min_shards or (complete and fresh):
                self.segments.append(fresh)
                return False
            if complete:
                return True
            if len(fresh) > seen:
                seen, since = len(fresh), time.monotonic()
            if time.monotonic() - since > timeout_seconds:
                raise DataError(
                    f"no new shard in {timeout_seconds:.0f} s, and the cache is not complete; {self._newest()}",
                    where=str(self._cache),
                    fix="run `llmdistill generate` again; the training continues from its checkpoint",
                )
            on_wait()
            time.sleep(poll_seconds)

    def _newest(self) -> str:
        """What the fleet wrote last, for a message."""
        names = shard_names(self._cache)
        folder = shard_folder(self._cache)
        if not names:
            return "it holds no shard at all"
        if isinstance(folder, str):  # an object store: its names say nothing about time
            return f"it holds {len(names)} shards"
        written = {name: (folder / name).stat().st_mtime for name in names}
        newest = max(names, key=lambda name: written[name])
        return f"the last of {len(names)} is {newest}, {(time.time() - written[newest]) / 60:.1f} minutes old"
