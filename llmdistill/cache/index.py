"""The cache folder and its index. The index is a summary of the shards: it can always be made again from them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path

from llmdistill.cache.schema import FORMAT, SHARD_SUFFIX, VERSION
from llmdistill.cache.shard import ShardSummary, commit_bytes, read_keys, read_spec, read_summary
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec


def shard_folder(cache: Path) -> Path:
    """Where the shards of a cache lie."""
    return cache / "shards"


def shard_paths(cache: Path) -> list[Path]:
    """Committed shards, by name."""
    return sorted(shard_folder(cache).glob(f"*{SHARD_SUFFIX}"))


def committed_keys(cache: Path, spec: CaptureSpec) -> set[bytes]:
    """Keys of all committed records; temporary files of a writer that died are removed.

    Raises:
        DataError: a shard was captured under another spec (the difference is shown), is damaged, or repeats a record.

    """
    for leftover in shard_folder(cache).glob(".*.tmp"):
        leftover.unlink()
    keys: set[bytes] = set()
    for path in shard_paths(cache):
        require_same_spec(read_spec(path), spec, path)
        found = read_keys(path)
        if repeated := keys.intersection(found):
            raise DataError(f"{len(repeated)} records are in another shard too", where=str(path), fix="remove one file")
        keys.update(found)
    return keys


def require_same_spec(found: CaptureSpec, asked: CaptureSpec, path: Path) -> None:
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
        where=str(path.parent.parent),
        fix="choose another output folder, or go back to the settings that the cache was made with",
    )


def write_index(cache: Path) -> dict[str, object]:
    """Make index.json from the shards' headers.

    Raises:
        DataError: there is no shard, or one is damaged.

    """
    paths = shard_paths(cache)
    if not paths:
        raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
    shards: list[ShardSummary] = [read_summary(path) for path in paths]
    index = {
        "format": FORMAT,
        "version": VERSION,
        "spec": asdict(read_spec(paths[0])),
        "records": sum(shard.records for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "rows": sum(shard.rows for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    commit_bytes(cache / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    return index
