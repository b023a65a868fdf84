"""The cache folder and its index. The index is a summary of the shards: it can always be made again from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from llmdistill.cache.captures import common, require_one_of
from llmdistill.cache.schema import FORMAT, SHARD_SUFFIX, VERSION
from llmdistill.cache.shard_file import ShardFile
from llmdistill.cache.storage import Storage, open_storage
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec

INDEX = "index.json"
KEYS = "index.keys.safetensors"
"""Keys of each shard, uint8 [S, 16] under its name: says which records a damaged shard held."""


def shard_folder(cache: Path | str) -> Path | str:
    """Where the shards of a cache lie."""
    return f"{cache.rstrip('/')}/shards" if isinstance(cache, str) else cache / "shards"


def shard_storage(cache: Path | str) -> Storage:
    """The storage of a cache's shards."""
    return open_storage(shard_folder(cache))


def shard_names(cache: Path | str) -> list[str]:
    """Names of the committed shards, sorted."""
    return shard_storage(cache).names(SHARD_SUFFIX)


def open_shards(cache: Path | str, names: list[str] | None = None) -> Iterator[ShardFile]:
    """The committed shards, one open at a time.

    Raises:
        DataError: one is damaged.
    """
    storage = shard_storage(cache)
    for name in storage.names(SHARD_SUFFIX) if names is None else names:
        with ShardFile(storage.local(name)) as shard:
            yield shard


def committed_keys(cache: Path | str, *specs: CaptureSpec) -> set[bytes]:
    """Keys of all committed records; temporary files of a writer that died are removed.

    Args:
        cache: the cache.
        specs: the captures that may lie in it, one for each teacher.

    Raises:
        DataError: a shard was captured under another spec (the difference is shown) or is damaged.
    """
    shard_storage(cache).remove_leftovers()
    keys: set[bytes] = set()
    for shard in open_shards(cache):
        require_one_of(shard.spec, specs, str(cache))
        keys.update(map(bytes, shard.stored("keys")))
    return keys


@dataclass
class Capture:
    """What a cache holds of one teacher."""

    spec: CaptureSpec
    name: str = ""
    """The teacher's name in the configuration, for people; unknown where no `generate` ended with this cache."""
    shards: int = 0
    records: int = 0
    """A record that lies in two shards counts twice."""
    tokens: int = 0
    rows: int = 0

    def add(self, shard: ShardFile) -> None:
        """Count a shard."""
        self.shards += 1
        self.records += shard.summary.records
        self.tokens += shard.summary.tokens
        self.rows += shard.summary.rows


def write_index(cache: Path | str, captures: Sequence[Capture] | None = None) -> dict[str, Any]:
    """Make index.json from the shards' headers; that it is there says that the cache is complete.

    Args:
        cache: the cache.
        captures: give the names of the teachers; None: those of the index that is there already.

    Raises:
        DataError: there is no shard, or one is damaged.
    """
    named = read_captures(cache) if captures is None else captures
    found: list[Capture] = []
    summaries, keys = [], {}
    for shard in open_shards(cache):
        summaries.append(shard.summary)
        keys[shard.path.name] = shard.stored("keys")
        capture_of(shard.spec, found, named).add(shard)
    if not found:
        raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
    distinct = len(np.unique(np.concatenate(list(keys.values())), axis=0))
    order = [capture.spec for capture in named]
    # As the configuration names them, and not as the names of shards happen to sort.
    found.sort(key=lambda capture: order.index(capture.spec) if capture.spec in order else len(order))
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "spec": common([capture.spec for capture in found]).facts(),
        "records": distinct,
        "tokens": sum(shard.tokens for shard in summaries),
        "rows": sum(shard.rows for shard in summaries),
        "bytes": sum(shard.bytes for shard in summaries),
        "captures": [{**asdict(capture), "spec": capture.spec.facts()} for capture in found],
        "shards": [asdict(shard) for shard in summaries],
    }
    storage = open_storage(cache)
    storage.put(KEYS, save(keys))
    storage.put(INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return index


def capture_of(spec: CaptureSpec, found: list[Capture], named: Sequence[Capture]) -> Capture:
    """The member of `found` with this spec; a new one, with the name that `named` knows, where there is none."""
    for capture in found:
        if capture.spec == spec:
            return capture
    found.append(Capture(spec, next((capture.name for capture in named if capture.spec == spec), "")))
    return found[-1]


def read_captures(cache: Path | str) -> list[Capture]:
    """What index.json says of the teachers; empty where there is none, or one of a version that did not say it."""
    index = read_index(cache) or {}
    return [Capture(**{**said, "spec": CaptureSpec(**said["spec"])}) for said in index.get("captures", ())]


def read_index(cache: Path | str) -> dict[str, Any] | None:
    """index.json, or None where there is none or it cannot be read (it can be made again)."""
    storage = open_storage(cache)
    if storage.size(INDEX) < 0:
        return None
    try:
        return dict(json.loads(storage.local(INDEX).read_text()))
    except ValueError:
        return None
