"""Figures of the cache: bytes, divergence, speed of the codec, of the loader and of the plan.

    python benchmarks/cache.py [--json] [--rows FILE.npz] [--quick]

Rows come from benchmarks/real_rows.py. Log-probabilities of a larger vocabulary (v151936) are the same rows with ids
spread over it. Bytes count whole shard files over supervised rows; prompts of the rows' records are included. `--quick`
leaves out the plan over 10^8 records and the sparse cache of 20 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from llmdistill.cache.index import shard_folder
from llmdistill.cache.order import plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.rows import EncodedRows, encode_rows
from llmdistill.cache.schema import FORMAT, VERSION, columns
from llmdistill.cache.shard import DTYPES, write_shard
from llmdistill.types import CaptureSpec, HeadTailRows, Record, SampledRows, TopKRows

ROWS = Path(__file__).parent / "data" / "smollm2_rows.npz"
NOTHING = 0xFFFFFFFF


def spec_of(kind: str = "top_k", k: int = 64, vocabulary: int = 49_152) -> CaptureSpec:
    """A capture spec for the benchmark."""
    kinds: dict[str, dict[str, Any]] = {
        "top_k": {"top_k": k},
        "sampled": {"top_k": 0, "draws": 50},
        "head_tail": {"top_k": 0, "draws": 50, "head_mass": 0.9, "head_size": 8},
    }
    return CaptureSpec(
        mode="score", kind=kind, vocabulary_size=vocabulary, teacher="0" * 32, tokenizer="0" * 32, engine="vllm",
        dtype="bfloat16", **kinds[kind],
    )  # fmt: skip


def load_rows(file: Path) -> dict[str, np.ndarray]:
    """What benchmarks/real_rows.py wrote. It keeps float16, whose rounding may lift a mass above 1: undone here."""
    with np.load(file) as arrays:
        rows = dict(arrays)
    logprobs = np.minimum(rows["logprobs"].astype(np.float32), 0)
    excess = np.log(np.exp(logprobs).sum(1, keepdims=True))
    return rows | {"logprobs": logprobs - np.maximum(excess, 0)}


def real_records(rows: dict[str, np.ndarray], spec: CaptureSpec) -> list[Record]:
    """The scored text as records of a kind."""
    spread = max(spec.vocabulary_size // int(rows["vocabulary"]), 1)
    records, token, row = [], 0, 0
    for number, (length, first) in enumerate(zip(rows["lengths"].tolist(), rows["firsts"].tolist(), strict=True)):
        part = {name: values[row : row + length - first] for name, values in rows.items() if values.ndim}
        common = {
            "actual_logprobs_R": np.minimum(part["actual"], 0).astype(np.float32),
            "entropy_R": np.maximum(part["entropy"], 0).astype(np.float32),
        }
        tokens = (rows["tokens"][token : token + length] * spread).astype(np.int32)
        supervised = np.arange(length) >= first
        key = number.to_bytes(16, "big")
        records.append(Record(key, tokens, supervised, _rows(part, spec, spread, common), "scored", number, "text"))
        token, row = token + length, row + length - first
    return records


def _rows(part: dict[str, np.ndarray], spec: CaptureSpec, spread: int, common: dict[str, Any]) -> Any:
    logprobs_RK = np.minimum(part["logprobs"].astype(np.float32), 0)
    ids_RK = (part["ids"] * spread).astype(np.int32)
    if spec.kind == "top_k":
        return TopKRows(ids_RK[:, : spec.top_k], logprobs_RK[:, : spec.top_k], **common)
    drawn = part["draws" if spec.kind == "sampled" else "tail"]
    ids, counts, lengths, heads = [], [], [], part["heads"].astype(np.int32)
    for row, tokens in enumerate(drawn):
        found, count = np.unique(tokens[tokens != NOTHING], return_counts=True)
        order = np.argsort(-count, kind="stable")
        ids += [ids_RK[row, : heads[row]]] if spec.kind == "head_tail" else []
        ids.append(found[order].astype(np.int32) * spread)
        counts.append(count[order])
        lengths.append(len(found))
    flat, counts_F = np.concatenate(ids).astype(np.int32), np.concatenate(counts).astype(np.int32)
    if spec.kind == "sampled":
        return SampledRows(flat, counts_F, np.array(lengths, np.int32), **common)
    logprobs_H = logprobs_RK[np.arange(logprobs_RK.shape[1])[None] < heads[:, None]]
    return HeadTailRows(flat, heads, np.array(lengths, np.int32), logprobs_H, counts_F, **common)


def bytes_per_row(rows: dict[str, np.ndarray], spec: CaptureSpec, compression: Any) -> float:
    """Bytes of a shard of 16 copies of the text (some MB), over its rows."""
    records = real_records(rows, spec)
    copies = [
        Record((16 * number + copy).to_bytes(16, "big"), *(getattr(record, name) for name in _FIELDS))
        for copy in range(16)
        for number, record in enumerate(records)
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = write_shard(folder, copies, spec, "vllm 0.32.0", compression)
    return done.bytes / done.rows


_FIELDS = ("token_ids_N", "supervised_N", "rows", "finish_reason", "split", "source")


def encoded(records: list[Record], spec: CaptureSpec) -> EncodedRows:
    """The rows of records, encoded, as a reader gives them."""
    found = encode_rows([record.rows for record in records], spec)
    names = {column.name for column in columns(spec)}
    as_int16 = {name: part.view(np.int16) if part.dtype == np.uint16 else part for name, part in found.items()}
    return EncodedRows(spec, {name: torch.from_numpy(part) for name, part in as_int16.items() if name in names})


def divergence(rows: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean and maximum over rows of KL(stored entries ‖ decoded), both renormalised to the captured mass."""
    spec = spec_of()
    decoded = encoded(real_records(rows, spec), spec).decode(spec.vocabulary_size)[1].double().numpy()
    logprobs = np.minimum(rows["logprobs"].astype(np.float64), 0)
    p = np.exp(logprobs)
    kl = (p * (logprobs - decoded)).sum(1) / p.sum(1)
    return float(kl.mean()), float(kl.max())


def best_of(action: Callable[[], object], repeats: int = 15) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def codec_speed(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Rows (tokens) a second and core at k=64, in batches as a step has them."""
    spec, wide = spec_of(), spec_of(vocabulary=151_936)
    records = real_records(rows, spec)
    several, count = encoded(records * 2, spec), 2 * len(rows["ids"])
    several_wide = encoded(real_records(rows, wide) * 2, wide)
    parts = [record.rows for record in records] * 2
    sampled = spec_of("head_tail")
    several_head = encoded(real_records(rows, sampled) * 2, sampled)
    return {
        "decode_tokens_per_s": count / best_of(lambda: several.decode(49_152)),
        "decode_tokens_per_s_v151936": count / best_of(lambda: several_wide.decode(151_936)),
        "decode_tokens_per_s_head_tail": count / best_of(lambda: several_head.decode(49_152)),
        "encode_tokens_per_s": count / best_of(lambda: encode_rows(parts, spec)),
    }


def loader_cost(records: int) -> float:
    """Microseconds to read one record of a (sparse) cache of so many records, in random order."""
    with tempfile.TemporaryDirectory() as folder:
        sparse_cache(Path(folder), records * _SPARSE_RECORD_BYTES, records_per_shard=min(records, 4096))
        reader = CacheReader(Path(folder))
        order = np.random.default_rng(0).integers(0, len(reader), 1500).tolist()
        for number in order[:500]:
            reader.read(number)
        started = time.perf_counter()
        for number in order[500:]:
            reader.read(number)
        return (time.perf_counter() - started) / 1000 * 1e6


_SPARSE_ROWS = 128
_SPARSE_RECORD_BYTES = _SPARSE_ROWS * 203


def sparse_cache(cache: Path, size: int, records_per_shard: int = 4096) -> int:
    """A cache of at least `size` bytes whose files are holes where the big columns are: it takes little disk.

    All log-probabilities are 0-bytes; keys, offsets and record checksums are real, so that it reads like any other.

    Returns:
        its apparent size.
    """
    import zlib

    spec = spec_of()
    counts = {"record": records_per_shard, "bound": records_per_shard + 1}
    counts["token"] = counts["row"] = records_per_shard * _SPARSE_ROWS
    total = shard = 0
    folder = Path(str(shard_folder(cache)))
    folder.mkdir(parents=True)
    data = [column for column in columns(spec) if column.per not in ("record", "bound")]
    zeros = _SPARSE_ROWS * sum(1 if column.bits else column.item for column in data)
    while total < size:
        small: dict[str, np.ndarray] = {
            "keys": np.random.default_rng(shard).integers(0, 256, (records_per_shard, 16), dtype=np.uint8),
            "token_offsets": np.arange(records_per_shard + 1) * _SPARSE_ROWS,
            "row_offsets": np.arange(records_per_shard + 1) * _SPARSE_ROWS,
            "record_checksums": np.full(records_per_shard, zlib.crc32(bytes(zeros)), np.uint32),
        }
        header: dict[str, Any] = {"__metadata__": {
            "format": FORMAT, "version": VERSION, "spec": json.dumps(asdict(spec)), "engine_version": "none",
            "sources": '[""]', "compression": "none", "records": str(counts["record"]), "tokens": str(counts["token"]),
            "rows": str(counts["row"]), "checksum": "",
        }}  # fmt: skip
        end = 0
        for column in columns(spec):
            length = int(np.prod(column.shape(counts))) * np.dtype(column.dtype).itemsize
            header[column.name] = {
                "dtype": DTYPES[column.dtype], "shape": column.shape(counts), "data_offsets": [end, end + length],
            }  # fmt: skip
            end += length
        text = json.dumps(header).encode()
        with (folder / f"{shard:032x}.safetensors").open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, array in small.items():
                stream.seek(8 + len(text) + header[name]["data_offsets"][0])
                stream.write(array.tobytes())
            stream.truncate(8 + len(text) + end)
        total, shard = total + 8 + len(text) + end, shard + 1
    return total


def _plan(count: int) -> dict[str, float]:
    generator = np.random.default_rng(0)
    pieces = [np.clip(generator.lognormal(5.5, 0.8, count // 50), 8, 4096).astype(np.int32) for _ in range(50)]
    lengths = np.concatenate(pieces)
    del pieces
    started = time.perf_counter()
    plan = plan_steps(lengths, np.arange(len(lengths), dtype=np.uint32), 1, 0, 4096, 8192)
    for rank in range(1024):
        plan.micro_batches(len(plan) // 2, rank, 1024, 2)
    seconds = time.perf_counter() - started
    full = lengths.sum(dtype=np.int64) / (4096 * (len(plan.bounds) - 1))
    return {
        "plan_1e8_seconds": seconds,
        "plan_1e8_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "packing_full": float(full),
    }


def _sparse_read(folder: str) -> dict[str, float]:
    size = sparse_cache(Path(folder), 20 << 30)
    reader = CacheReader(Path(folder))
    for number in np.random.default_rng(0).integers(0, len(reader), 5000).tolist():
        reader.read(number)
    return {
        "sparse_cache_gb": size / 1e9,
        "sparse_read_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def in_own_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """So that peaks of memory are those of the function."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(rows: dict[str, np.ndarray], quick: bool) -> dict[str, float]:
    """All figures."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name, kind, k, vocabulary in (
        ("v49152_k64", "top_k", 64, 49_152),
        ("v151936_k64", "top_k", 64, 151_936),
        ("v49152_k16", "top_k", 16, 49_152),
    ):
        found[f"bytes_raw_{name}"] = bytes_per_row(rows, spec_of(kind, k, vocabulary), "none")
    found["bytes_zstd_real_k64"] = bytes_per_row(rows, spec_of(), "zstd")
    for kind in ("head_tail", "sampled"):
        found[f"bytes_{kind}"] = bytes_per_row(rows, spec_of(kind), "none")
        found[f"bytes_zstd_{kind}"] = bytes_per_row(rows, spec_of(kind), "zstd")
        records = real_records(rows, spec_of(kind))
        found[f"entries_{kind}"] = sum(len(record.rows.ids_E) for record in records) / len(rows["ids"])
    found["kl_mean"], found["kl_max"] = divergence(rows)
    found |= codec_speed(rows)
    for records in (1_000, 1_000_000):
        if records < 1_000_000 or not quick:
            found[f"read_microseconds_{records:.0e}".replace("+0", "")] = loader_cost(records)
    if not quick:
        found |= in_own_process(_plan, 100_000_000)
        folder = tempfile.mkdtemp()
        try:
            found |= in_own_process(_sparse_read, folder)
        finally:
            shutil.rmtree(folder)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    found = measure(load_rows(args.rows), args.quick)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(f"{name:<32} {value:>14.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
