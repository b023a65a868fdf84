"""Reading all of a cache and naming everything that cannot be right, by file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmdistill.cache.captures import require_readable_together
from llmdistill.cache.codec import high_bits, unpack_fields
from llmdistill.cache.index import read_index, shard_names, shard_storage
from llmdistill.cache.rows import segment_sums
from llmdistill.cache.schema import SHARD_SUFFIX
from llmdistill.cache.shard import checksum, record_checksums, shard_name
from llmdistill.cache.shard_file import ShardFile
from llmdistill.errors import DataError
from llmdistill.types import FINISH_REASONS, CaptureSpec


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    file: str
    what: str
    damage: bool = True
    """False: worth knowing, and nothing is lost."""


@dataclass
class Verification:
    """What `verify` found."""

    shards: int = 0
    records: int = 0
    """Distinct ones, in shards without damage."""
    rows: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        """Names of the damaged files."""
        return sorted({finding.file for finding in self.findings if finding.damage})


def verify(cache: Path | str, on_progress: Callable[[int], None] = lambda done: None) -> Verification:
    """Read every byte of a cache.

    Checked are lengths, checksums (of files and records), the shard's name, offsets, ids, log-probabilities (sorted,
    mass at most 1), counts of draws, supervised tokens against rows, sidecars, keys that lie in two shards, and whether
    index.json agrees with the shards.

    Raises:
        DataError: there is no shard at all.
    """
    names = shard_names(cache)
    if not names:
        raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
    found, storage = Verification(), shard_storage(cache)
    spec: CaptureSpec | None = None
    keys: list[np.ndarray] = []
    for done, name in enumerate(names, start=1):
        found.shards += 1
        found.bytes += storage.size(name)
        try:
            with ShardFile(storage.local(name)) as shard:
                spec = spec or shard.spec
                require_readable_together(shard.spec, spec, name)
                faults = list(shard_faults(shard, name))
                found.findings += [Finding(name, fault) for fault in faults]
                if not faults:
                    keys.append(shard.stored("keys"))
                    found.rows += shard.summary.rows
                if spec.hidden_layers:
                    found.findings += [Finding(name, fault) for fault in _sidecar_faults(cache, name, shard)]
        except DataError as error:
            found.findings.append(Finding(name, error.what))
        on_progress(done)
    everything = np.concatenate(keys) if keys else np.zeros((0, 16), np.uint8)
    found.records = len(np.unique(everything, axis=0))
    if repeated := len(everything) - found.records:
        found.findings.append(Finding("shards", f"{repeated} records lie in two shards; readers use one", damage=False))
    found.findings += _index_findings(cache, names)
    return found


def shard_faults(shard: ShardFile, name: str) -> Iterator[str]:
    """What is wrong with the contents of an open shard, in words."""
    if shard.metadata["checksum"] != checksum(shard.metadata, {key: shard.stored(key) for key in shard.tensor_names}):
        yield "the checksum differs: the file is not what was written"
        return  # whatever else is wrong follows from that
    if shard_name([bytes(key) for key in shard.stored("keys")]) != name:
        yield f"holds other records than its name says ({SHARD_SUFFIX} files are named by their keys)"
    tensors = {column.name: shard.column(column) for column in shard.columns}
    for key, offsets in shard.offsets.items():
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            yield f"{key} does not rise from 0"
            return
    if (record_checksums(tensors, shard.spec) != shard.checksums).any():
        yield "the checksum of a record differs"
    yield from _token_faults(tensors, shard)
    yield from _row_faults(tensors, shard.spec)


def _token_faults(tensors: dict[str, np.ndarray], shard: ShardFile) -> Iterator[str]:
    spec, offsets = shard.spec, tensors["token_offsets"]
    tokens = int(offsets[-1])
    ids_N = tensors["token_ids_low"].astype(np.int64)
    if "token_ids_high" in tensors:
        ids_N |= (
            unpack_fields(tensors["token_ids_high"], high_bits(spec.vocabulary_size), 0, tokens).astype(np.int64) << 16
        )
    if tokens and ids_N.max() >= spec.vocabulary_size:
        yield f"a token id is {ids_N.max()}, the vocabulary has {spec.vocabulary_size}"
    supervised_N = unpack_fields(tensors["supervised"], 1, 0, tokens)
    if (segment_sums(supervised_N.astype(np.int64), np.diff(offsets)) != np.diff(tensors["row_offsets"])).any():
        yield "a record has another number of rows than of supervised tokens"
    starts = offsets[:-1][np.diff(offsets) > 0]
    if supervised_N[starts].any():
        yield "the first token of a record is marked as supervised, and nothing predicts it"
    if (tensors["finish_reasons"] >= len(FINISH_REASONS)).any() or (tensors["source_ids"] >= len(shard.sources)).any():
        yield "a finish reason or a source is out of range"


def _chunk_faults(tensors: dict[str, np.ndarray]) -> Iterator[str]:
    bounds = tensors["row_offsets"]
    ends_R = unpack_fields(tensors["chunk_ends"], 1, 0, int(bounds[-1]))
    chunks_S = segment_sums(ends_R.astype(np.int64), np.diff(bounds))
    if (chunks_S != np.diff(tensors["entry_offsets"])).any():
        yield "a record has another number of chunks than of rows that end one"
    if not ends_R[bounds[1:][np.diff(bounds) > 0] - 1].all():
        yield "the last chunk of a record has no end"
    if (tensors["chunk_logprobs"] > 0).any():
        yield "the log-probability of a chunk is above 0"


def _row_faults(tensors: dict[str, np.ndarray], spec: CaptureSpec) -> Iterator[str]:
    if spec.kind == "chunks":
        yield from _chunk_faults(tensors)
        return
    actual_R, entropy_R = tensors["actual_logprobs"], tensors["entropies"].astype(np.float32)
    if not (actual_R <= 0).all():
        yield "the log-probability of an actual token is above 0 or not a number"
    if (entropy_R < 0).any() or (entropy_R > np.log(spec.vocabulary_size) + 0.02).any():
        yield "an entropy is out of range"
    if "logsumexps" in tensors and not np.isfinite(tensors["logsumexps"]).all():
        yield "a log-sum-exp is not finite"
    if "mass" in tensors and not ((tensors["mass"] > 0) & (tensors["mass"] <= 1)).all():
        yield "the captured mass of a row is not above 0 and at most 1"
    row_E, ids_E = entry_ids(tensors, spec)
    if len(ids_E) and ids_E.max() >= spec.vocabulary_size:
        yield f"an entry's id is {ids_E.max()}, the vocabulary has {spec.vocabulary_size}"
    pairs = np.sort(row_E << 24 | ids_E)
    if (pairs[1:] == pairs[:-1]).any():
        yield "a row holds an id twice"
    yield from _draw_faults(tensors, spec)
    if spec.kind != "sampled" and _unsorted(tensors, spec):
        yield "the entries of a row are not sorted from the most likely down"


def _draw_faults(tensors: dict[str, np.ndarray], spec: CaptureSpec) -> Iterator[str]:
    if spec.kind == "top_k":
        return
    draws = tensors["draw_counts"].astype(np.int64)
    if (draws < 1).any():
        yield "an entry was drawn 0 times"
    if spec.kind == "sampled":
        if (segment_sums(draws, tensors["entry_counts"]) != spec.draws).any():
            yield f"the counts of a row do not sum to {spec.draws}"
    elif (segment_sums(draws, tensors["tail_counts"]) > spec.draws).any():
        yield f"a row has more than {spec.draws} draws"


def _unsorted(tensors: dict[str, np.ndarray], spec: CaptureSpec) -> bool:
    stored = tensors["entry_logprobs"]
    if spec.kind == "top_k":
        if spec.logprobs == "u4":
            stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)[:, : spec.top_k]
        falling = stored[:, 1:] <= stored[:, :-1] if spec.logprobs == "f16" else stored[:, 1:] >= stored[:, :-1]
        return not falling.all()
    heads_R = tensors["head_counts"].astype(np.int64)
    if spec.logprobs == "u4":
        stored = unpack_fields(stored, 4, 0, int(heads_R.sum()))
    row_H = np.repeat(np.arange(len(heads_R)), heads_R)
    wrong = stored[1:] > stored[:-1] if spec.logprobs == "f16" else stored[1:] < stored[:-1]
    return bool((wrong & (row_H[1:] == row_H[:-1])).any())


def entry_ids(tensors: dict[str, np.ndarray], spec: CaptureSpec) -> tuple[np.ndarray, np.ndarray]:
    """Row number and id of every entry, both int64 [E]."""
    low, bits = tensors["entry_ids_low"], high_bits(spec.vocabulary_size)
    if spec.kind == "top_k":
        ids, row_E = low.astype(np.int64), np.repeat(np.arange(len(low)), spec.top_k)
        if bits:
            packed = tensors["entry_ids_high"]
            fields = unpack_fields(packed.reshape(-1), bits, 0, packed.size * 8 // bits)
            ids |= fields.reshape(len(low), -1)[:, : spec.top_k].astype(np.int64) << 16
        return row_E, ids.reshape(-1)
    ids = low.astype(np.int64)
    if bits:
        ids |= unpack_fields(tensors["entry_ids_high"], bits, 0, len(ids)).astype(np.int64) << 16
    counts = [
        tensors[name].astype(np.int64) for name in ("entry_counts", "head_counts", "tail_counts") if name in tensors
    ]
    entries_R = np.sum(counts, axis=0, dtype=np.int64)
    return np.repeat(np.arange(len(counts[0])), entries_R), ids


def _sidecar_faults(cache: Path | str, name: str, shard: ShardFile) -> list[str]:
    from llmdistill.cache.hidden import sidecar_faults

    return sidecar_faults(cache, name, shard)


def _index_findings(cache: Path | str, names: list[str]) -> list[Finding]:
    index = read_index(cache)
    if index is None:
        return [
            Finding("index.json", "is missing or cannot be read; `llmdistill cache repair` makes it anew", damage=False)
        ]
    listed = {str(entry["name"]) for entry in index["shards"]}
    lost = [Finding(name, "is listed in index.json and does not exist") for name in sorted(listed - set(names))]
    if unlisted := set(names) - listed:
        lost.append(Finding("index.json", f"does not list {len(unlisted)} committed shards", damage=False))
    return lost
