"""To and from Parquet, for people's own tools (`datasets.load_dataset("parquet", …)` reads the files).

One row a record. Lists are per token, per row and per entry; nested lists follow the rows:

    key hex string · split uint64 · source, finish_reason string · token_ids list<int32> · supervised list<bool>
    actual_logprobs, entropies list<float> · logsumexps list<list<float>> (with extra temperatures)
    ids list<list<int32>> · logprobs list<list<float>> (top_k; of head_tail the head) · counts list<list<int32>>
    (draws of the sampled kinds)

The capture spec and the engine's version lie in the schema's metadata. Log-probabilities are the decoded ones, so a
round trip keeps ids, counts and tokens exactly and log-probabilities within the codec's error. Hidden states are not
taken along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.cache.index import open_shards, shard_folder, write_index
from llmdistill.cache.reader import CacheReader, StoredRecord
from llmdistill.cache.shard import Compression, write_shard
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec, HeadTailRows, Record, SampledRows, TeacherRows, TopKRows

_SPEC = b"llmdistill.spec"
_ENGINE = b"llmdistill.engine_version"
RECORDS_PER_GROUP = 256


def to_parquet(cache: Path | str, file: Path) -> int:
    """Write all records of a cache, in the order of their keys, as one Parquet file.

    Returns:
        the number of records.

    Raises:
        DataError: the cache is empty or damaged, or of several teachers.
    """
    reader = CacheReader(cache)
    if reader.spec.kind == "chunks":
        raise DataError(
            "text in another tokenizer's tokens has no rows to convert",
            where=str(cache),
            fix="convert the teacher's own cache, from which `llmdistill train` makes this one",
        )
    if len(reader.specs) > 1:
        raise DataError(
            f"it holds records of {len(reader.specs)} teachers, and the schema of a Parquet file names one",
            where=str(cache),
            fix="read the shards themselves, with the safetensors library",
        )
    versions = sorted({shard.metadata["engine_version"] for shard in open_shards(cache, reader.shards)})
    schema = _schema(reader.spec).with_metadata(
        {_SPEC: json.dumps(reader.spec.facts()).encode(), _ENGINE: ", ".join(versions).encode()}
    )
    temporary = file.with_name(f".{file.name}.tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, len(reader), RECORDS_PER_GROUP):
            numbers = range(start, min(start + RECORDS_PER_GROUP, len(reader)))
            rows = [_plain(reader.read(number), int(reader.splits[number])) for number in numbers]
            columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
            writer.write_table(pa.table(columns, schema=schema))
    temporary.rename(file)
    return len(reader)


def from_parquet(
    file: Path, cache: Path | str, compression: Compression = "none", records_per_shard: int = 1024
) -> int:
    """Make a cache of a file that `to_parquet` (or a tool that follows its schema) wrote.

    Returns:
        the number of records.

    Raises:
        DataError: not such a file, or its contents are impossible.
    """
    parquet = pq.ParquetFile(file)
    metadata = parquet.schema_arrow.metadata or {}
    if _SPEC not in metadata:
        raise DataError(
            "holds no capture spec", where=str(file), fix=f"write {_SPEC.decode()} into the schema's metadata"
        )
    spec = CaptureSpec(**json.loads(metadata[_SPEC]))
    engine = metadata.get(_ENGINE, b"unknown").decode()
    total = 0
    try:
        for batch in parquet.iter_batches(records_per_shard):
            records = list(_records(batch, spec))
            write_shard(shard_folder(cache), records, spec, engine, compression)
            total += len(records)
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(f"cannot be a cache: {error}", where=str(file)) from None
    write_index(cache)
    return total


def _schema(spec: CaptureSpec) -> pa.Schema:
    floats, integers = pa.list_(pa.float32()), pa.list_(pa.int32())
    fields: list[tuple[str, Any]] = [
        ("key", pa.string()),
        ("split", pa.uint64()),
        ("source", pa.string()),
        ("finish_reason", pa.string()),
        ("token_ids", integers),
        ("supervised", pa.list_(pa.bool_())),
        ("actual_logprobs", floats),
        ("entropies", floats),
        ("ids", pa.list_(integers)),
    ]
    if spec.temperatures:
        fields.append(("logsumexps", pa.list_(floats)))
    if spec.kind != "sampled":
        fields.append(("logprobs", pa.list_(floats)))
    if spec.kind != "top_k":
        fields.append(("counts", pa.list_(integers)))
    return pa.schema(fields)


def _plain(record: StoredRecord, split: int) -> dict[str, Any]:
    rows, spec = record.rows, record.rows.spec
    ids_RK, logprobs_RK = (part.numpy() for part in rows.decode(spec.vocabulary_size))
    plain = {
        "key": record.key.hex(),
        "split": split,
        "source": record.source,
        "finish_reason": record.finish_reason,
        "token_ids": record.token_ids_N.numpy(),
        "supervised": record.supervised_N.numpy(),
        "actual_logprobs": rows.actual_logprobs_R.numpy(),
        "entropies": rows.entropy_R.numpy(),
        "logsumexps": list(rows.logsumexp_RJ.numpy()),
    }
    if spec.kind == "top_k":
        return plain | {"ids": list(ids_RK), "logprobs": list(logprobs_RK)}
    count = {name: column.numpy().astype(np.int64) for name, column in rows.columns.items() if name.endswith("counts")}
    heads = count.get("head_counts", np.zeros(len(ids_RK), np.int64))
    tails = count["tail_counts"] if spec.kind == "head_tail" else count["entry_counts"]
    draws = np.split(count["draw_counts"], np.cumsum(tails)[:-1])
    plain["ids"] = [row[:entries] for row, entries in zip(ids_RK, heads + tails, strict=True)]
    plain["logprobs"] = [row[:entries] for row, entries in zip(logprobs_RK, heads, strict=True)]
    return plain | {"counts": draws if len(ids_RK) else []}


def _records(batch: pa.RecordBatch, spec: CaptureSpec) -> Iterator[Record]:
    for row in batch.to_pylist():
        yield Record(
            bytes.fromhex(row["key"]),
            np.array(row["token_ids"], np.int32),
            np.array(row["supervised"], bool),
            _rows(row, spec),
            row["finish_reason"],
            row["split"],
            row["source"],
        )


def _rows(row: dict[str, Any], spec: CaptureSpec) -> TeacherRows:
    count = len(row["actual_logprobs"])
    statistics: dict[str, Any] = {
        "actual_logprobs_R": np.array(row["actual_logprobs"], np.float32),
        "entropy_R": np.array(row["entropies"], np.float32),
    }
    if spec.temperatures:
        statistics["logsumexp_RJ"] = np.array(row["logsumexps"], np.float32).reshape(count, len(spec.temperatures))
    if spec.kind == "top_k":
        ids_RK = np.array(row["ids"], np.int32).reshape(count, spec.top_k)
        logprobs_RK = np.array(row["logprobs"], np.float32).reshape(count, spec.top_k)
        return TopKRows(ids_RK, logprobs_RK, **statistics)
    ids_E, counts = _flat(row["ids"], np.int32), _flat(row["counts"], np.int32)
    lengths = np.array([len(entries) for entries in row["counts"]], np.int32)
    if spec.kind == "sampled":
        return SampledRows(ids_E, counts, lengths, **statistics)
    heads_R = np.array([len(entries) for entries in row["logprobs"]], np.int32)
    return HeadTailRows(ids_E, heads_R, lengths, _flat(row["logprobs"], np.float32), counts, **statistics)


def _flat(lists: list[list[Any]], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.array(part, dtype) for part in lists)])
