"""One shard file: written under a temporary name, checked, renamed. The final name is the commit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmdistill.cache.codec import encode_ids, encode_logprobs
from llmdistill.cache.schema import FORMAT, SHARD_SUFFIX, TENSORS, VERSION
from llmdistill.errors import DataError
from llmdistill.types import FINISH_REASONS, RECORD_KEY_BYTES, CaptureSpec, Record


@dataclass(frozen=True)
class ShardSummary:
    """What the index keeps of a shard."""

    name: str
    records: int
    tokens: int
    rows: int
    bytes: int
    checksum: str


def shard_name(keys: Sequence[bytes]) -> str:
    """File name of the shard that holds these records: a hash of their keys, whatever their order."""
    return hashlib.blake2b(b"".join(sorted(keys)), digest_size=16).hexdigest() + SHARD_SUFFIX


def write_shard(folder: Path, records: Sequence[Record], spec: CaptureSpec, engine_version: str) -> ShardSummary:
    """Encode records and commit them as one file of `folder`.

    Raises:
        ValueError: a record holds ids outside the vocabulary or impossible log-probabilities.
        DataError: the file system refuses (disk full and the like); nothing is left behind.

    """
    tensors = _encode(records, spec)
    digest = _checksum(tensors)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "spec": json.dumps(asdict(spec), sort_keys=True),
        "engine_version": engine_version,
        "records": str(len(records)),
        "tokens": str(len(tensors["token_ids_low"])),
        "rows": str(len(tensors["mass"])),
        "checksum": digest,
    }
    payload = save(tensors, metadata)
    name = shard_name([record.key for record in records])
    commit_bytes(folder / name, payload)
    return ShardSummary(
        name, len(records), int(metadata["tokens"]), int(metadata["rows"]), len(payload), metadata["checksum"]
    )


def commit_bytes(path: Path, payload: bytes) -> None:
    """Write a file so that its name never stands for less than all of it: temporary name, fsync, rename.

    Raises:
        DataError: the file system refuses; the temporary file is removed.

    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(
            f"cannot write {len(payload)} bytes: {error.strerror}",
            where=str(path),
            fix="make room or choose another output, then run the same command again; finished shards are kept",
        ) from None


def read_spec(path: Path) -> CaptureSpec:
    """The capture spec that a shard was written with."""
    metadata, _ = _header(path)
    return CaptureSpec(**json.loads(metadata["spec"]))


def read_summary(path: Path) -> ShardSummary:
    """The index entry of a shard, from its header alone.

    Raises:
        DataError: the file is cut, or not a shard of this format and version.

    """
    metadata, _ = _header(path)
    return ShardSummary(
        path.name,
        int(metadata["records"]),
        int(metadata["tokens"]),
        int(metadata["rows"]),
        path.stat().st_size,
        metadata["checksum"],
    )


def read_keys(path: Path) -> list[bytes]:
    """Keys of a shard's records, in order."""
    _header(path)
    with safe_open(str(path), framework="numpy") as shard:
        return [bytes(row) for row in shard.get_tensor("keys")]


def verify_shard(path: Path) -> None:
    """Read all of a shard and compare it with its checksum.

    Raises:
        DataError: it differs.

    """
    metadata, names = _header(path)
    with safe_open(str(path), framework="numpy") as shard:
        found = _checksum({name: shard.get_tensor(name) for name in names})
    if found != metadata["checksum"]:
        raise DataError(f"damaged: the checksum is {found}, the header says {metadata['checksum']}", where=str(path))


def _header(path: Path) -> tuple[dict[str, str], list[str]]:
    fix = "remove the file and run `llmdistill generate` again: only its records are made anew"
    try:
        with safe_open(str(path), framework="numpy") as shard:
            metadata = shard.metadata() or {}
            names = list(shard.keys())
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise DataError(f"cannot be read as a shard ({size} bytes): {error}", where=str(path), fix=fix) from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise DataError(
            f"this is format {metadata.get('format')!r} version {metadata.get('version')!r},"
            f" and this program reads {FORMAT!r} version {VERSION!r}",
            where=str(path),
        )
    if missing := set(TENSORS) - set(names):
        raise DataError(f"these tensors are missing: {', '.join(sorted(missing))}", where=str(path), fix=fix)
    return metadata, list(TENSORS)


def _encode(records: Sequence[Record], spec: CaptureSpec) -> dict[str, np.ndarray]:
    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)

    def offsets(lengths: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    token_low, token_high = encode_ids(joined([r.token_ids_N for r in records])[:, None], spec.vocabulary_size)
    entry_low, entry_high = encode_ids(joined([r.rows.ids_RK for r in records]), spec.vocabulary_size)
    codes_RK, mass_R = encode_logprobs(joined([r.rows.logprobs_RK for r in records]))
    actual_R = joined([r.rows.actual_logprobs_R for r in records])
    if np.isnan(actual_R).any():
        raise ValueError("the log-probability of an actual token is NaN")
    tensors = {
        "keys": np.frombuffer(b"".join(r.key for r in records), np.uint8).reshape(-1, RECORD_KEY_BYTES),
        "splits": np.array([r.split for r in records], np.uint64),
        "finish_reasons": np.array([FINISH_REASONS.index(r.finish_reason) for r in records], np.uint8),
        "token_offsets": offsets([len(r.token_ids_N) for r in records]),
        "row_offsets": offsets([len(r.rows.ids_RK) for r in records]),
        "token_ids_low": token_low[:, 0],
        "token_ids_high": token_high,
        "supervised": joined([r.supervised_N for r in records]).astype(np.uint8),
        "actual_logprobs": np.maximum(actual_R, np.finfo(np.float16).min).astype(np.float16),
        "mass": mass_R,
        "entry_ids_low": entry_low,
        "entry_ids_high": entry_high,
        "entry_codes": codes_RK,
    }
    return {name: np.ascontiguousarray(tensors[name]) for name in TENSORS}


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in TENSORS:
        array: np.ndarray[Any, Any] = tensors[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
