"""The cache folder and its index. The index is a summary of the shards: it can always be made again from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

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


def committed_keys(cache: Path | str, spec: CaptureSpec) -> set[bytes]:
    """Keys of all committed records; temporary files of a writer that died are removed.

    Raises:
        DataError: a shard was captured under another spec (the difference is shown) or is damaged.
    """
    shard_storage(cache).remove_leftovers()
    keys: set[bytes] = set()
    for shard in open_shards(cache):
        require_same_spec(shard.spec, spec, str(cache))
        keys.update(map(bytes, shard.stored("keys")))
    return keys


def require_same_spec(found: CaptureSpec, asked: CaptureSpec, where: str) -> None:
    """Refuse to mix captures.

    Raises:
        DataError: the specs differ; every differing field is shown.
    """
    if found == asked:
        return
    differing = [
        f"{field.name}: the cache has {getattr(found, field.name)!r}, asked is {getattr(asked, field.name)!r}"
        for field in dataclasses.fields(CaptureSpec)
        if getattr(found, field.name) != getattr(asked, field.name)
    ]
    raise DataError(
        "the cache was captured differently\n  " + "\n  ".join(differing),
        where=where,
        fix="choose another output folder, or go back to the settings that the cache was made with",
    )


def write_index(cache: Path | str) -> dict[str, Any]:
    """Make index.json from the shards' headers; that it is there says that the cache is complete.

    Raises:
        DataError: there is no shard, or one is damaged.
    """
    spec: CaptureSpec | None = None
    summaries, keys = [], {}
    for shard in open_shards(cache):
        spec = shard.spec
        summaries.append(shard.summary)
        keys[shard.path.name] = shard.stored("keys")
    if spec is None:
        raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
    distinct = len(np.unique(np.concatenate(list(keys.values())), axis=0))
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "spec": spec.facts(),
        "records": distinct,
        "tokens": sum(shard.tokens for shard in summaries),
        "rows": sum(shard.rows for shard in summaries),
        "bytes": sum(shard.bytes for shard in summaries),
        "shards": [asdict(shard) for shard in summaries],
    }
    storage = open_storage(cache)
    storage.put(KEYS, save(keys))
    storage.put(INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return index


def read_index(cache: Path | str) -> dict[str, Any] | None:
    """index.json, or None where there is none or it cannot be read (it can be made again)."""
    storage = open_storage(cache)
    if storage.size(INDEX) < 0:
        return None
    try:
        return dict(json.loads(storage.local(INDEX).read_text()))
    except ValueError:
        return None
