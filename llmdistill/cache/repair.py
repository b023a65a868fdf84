"""Setting damaged shards aside, and saying which records are gone.

Which records a damaged shard held is taken from `index.keys.safetensors`, written with the index, or where there is no
such file from the shard's own key table if that can still be read. Either way `llmdistill generate` finds exactly the
missing ones by itself, because it asks the shards and not the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmdistill.cache.index import KEYS, open_shards, shard_names, shard_storage, write_index
from llmdistill.cache.shard_file import ShardFile
from llmdistill.cache.storage import open_storage
from llmdistill.cache.verify import verify
from llmdistill.errors import DataError


@dataclass(frozen=True)
class Repair:
    """What was done."""

    set_aside: dict[str, str]
    """Damaged file → what was wrong with it; the files lie in the folder `damaged` now."""
    missing: list[str]
    """Keys, in hexadecimal, of the records that are known to be gone."""
    unknown: list[str]
    """Files whose records are not known by key."""
    records: int
    """Records that are left."""


def repair(cache: Path | str) -> Repair:
    """Verify a cache, set damaged shards aside, remove leftovers of dead writers and make the index anew.

    Running it twice does nothing the second time. Nothing is deleted.

    Raises:
        DataError: there is no shard at all.
    """
    storage = shard_storage(cache)
    storage.remove_leftovers()
    known = _known_keys(cache)
    faults: dict[str, list[str]] = {}
    for finding in verify(cache).findings:
        if finding.damage:
            faults.setdefault(finding.file, []).append(finding.what)
    gone: set[bytes] = set()
    unknown = []
    for name in sorted(faults):
        keys = known.get(name)
        if keys is None:
            keys = _readable_keys(storage.local(name))
        if keys is None:
            unknown.append(name)
        else:
            gone.update(map(bytes, keys))
        storage.set_aside(name)
    for shard in open_shards(cache):
        gone.difference_update(map(bytes, shard.stored("keys")))
    records = int(write_index(cache)["records"]) if shard_names(cache) else 0
    return Repair(
        {name: "; ".join(what) for name, what in faults.items()}, sorted(key.hex() for key in gone), unknown, records
    )


def _known_keys(cache: Path | str) -> dict[str, np.ndarray]:
    """Keys of every shard when the index was written; empty where that file is missing or damaged."""
    storage = open_storage(cache)
    if storage.size(KEYS) < 0:
        return {}
    try:
        return load_file(storage.local(KEYS))
    except (SafetensorError, OSError):
        return {}


def _readable_keys(path: Path) -> np.ndarray | None:
    """Keys of a shard whose damage lies elsewhere: the header and the key table must fit the file's name."""
    from llmdistill.cache.shard import shard_name

    try:
        with ShardFile(path) as shard:
            keys = shard.stored("keys")
    except DataError:
        return None
    return keys if shard_name([bytes(key) for key in keys]) == path.name else None
