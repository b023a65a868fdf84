"""What two caches have in common and what not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.captures import distinct
from llmdistill.cache.index import open_shards
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec

SHOWN = 10


def diff(left: Path | str, right: Path | str) -> dict[str, Any]:
    """Compare two caches by capture spec, record keys and record checksums.

    A record whose key both have and whose checksum differs was answered differently: another engine version, or
    arithmetic that is not reproducible. Checksums are compared only where the specs are equal.

    Returns:
        plain data; `equal` says that specs and records are the same.

    Raises:
        DataError: a cache is empty or damaged.
    """
    specs_left, keys_left, sums_left = _contents(left)
    specs_right, keys_right, sums_right = _contents(right)
    values = {
        field.name: [_value(specs_left, field.name), _value(specs_right, field.name)]
        for field in dataclasses.fields(CaptureSpec)
    }
    fields = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    _, at_left, at_right = np.intersect1d(keys_left, keys_right, assume_unique=True, return_indices=True)
    only_left = np.delete(keys_left, at_left)
    only_right = np.delete(keys_right, at_right)
    changed = keys_left[at_left][sums_left[at_left] != sums_right[at_right]] if not fields else keys_left[:0]
    return {
        "equal": not fields and not len(only_left) and not len(only_right) and not len(changed),
        "spec": fields,
        "common": len(at_left),
        "changed": len(changed),
        "only_left": len(only_left),
        "only_right": len(only_right),
        "examples": {
            "changed": _hex(changed),
            "only_left": _hex(only_left),
            "only_right": _hex(only_right),
        },
    }


def _hex(keys: np.ndarray) -> list[str]:
    return [f"{int(key['high']):016x}{int(key['low']):016x}" for key in keys[:SHOWN]]


def _value(specs: Sequence[CaptureSpec], name: str) -> Any:
    """What a cache has in a field of its captures: a list where they differ."""
    found: list[Any] = []
    for spec in specs:
        if getattr(spec, name) not in found:
            found.append(getattr(spec, name))
    return found[0] if len(found) == 1 else sorted(found, key=str)


def _contents(cache: Path | str) -> tuple[list[CaptureSpec], np.ndarray, np.ndarray]:
    """Captures, distinct keys [S] ascending, checksums uint32 [S]."""
    specs: list[CaptureSpec] = []
    keys, sums = [], []
    for shard in open_shards(cache):
        specs = distinct([*specs, shard.spec])
        keys.append(shard.stored("keys"))
        sums.append(shard.checksums)
    if not specs:
        raise DataError("the cache holds no shard", where=str(cache))
    # Two big-endian halves compare as the bytes do.
    halves = np.concatenate(keys).view(">u8").astype(np.uint64)
    packed = np.empty(len(halves), [("high", np.uint64), ("low", np.uint64)])
    packed["high"], packed["low"] = halves[:, 0], halves[:, 1]
    unique, first = np.unique(packed, return_index=True)
    return specs, unique, np.concatenate(sums)[first]
