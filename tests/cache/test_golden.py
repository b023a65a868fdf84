"""Files written once and kept: today's reader must read them, and today's writer must write the same bytes.

`python tests/cache/test_golden.py` writes them anew; do so only together with a new format version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.cache.verify import verify
from llmdistill.types import CaptureSpec, ChunkRows, HeadTailRows, Record, SampledRows, TeacherRows, TopKRows

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("top_k", "sampled", "head_tail", "chunks")
VOCABULARY = 151_936


def golden_spec(kind: str) -> CaptureSpec:
    if kind == "chunks":
        return CaptureSpec(
            "score", kind, 0, VOCABULARY, "teacher", "tokenizer", "fake", "float32", derived_from="other"
        )
    return CaptureSpec(
        mode="score", kind=kind, top_k=3 if kind == "top_k" else 0, vocabulary_size=VOCABULARY, teacher="teacher",
        tokenizer="tokenizer", engine="fake", dtype="float32", temperatures=(2.0,), draws=0 if kind == "top_k" else 10,
        head_mass=0.7 if kind == "head_tail" else 0.0, head_size=2 if kind == "head_tail" else 0,
    )  # fmt: skip


def golden_records(kind: str) -> list[Record]:
    """Two records of hand-made rows, 2 and 1 of them. Probabilities are far from the codes' borders."""
    tokens = [np.array([1, 65_535, 65_536, 151_645], np.int32), np.array([7, 151_935], np.int32)]
    supervised = [np.array([False, False, True, True]), np.array([False, True])]
    return [
        Record(
            bytes(range(16 * i, 16 * i + 16)), tokens[i], supervised[i], rows, ("stop", "length")[i], 2**63 + i, f"s{i}"
        )
        for i, rows in enumerate((_rows(kind, 0, 2), _rows(kind, 2, 3)))
    ]


def _rows(kind: str, start: int, stop: int) -> TeacherRows:
    if kind == "chunks":
        # The first record is one chunk of two rows; of the second the teacher's probability is not known.
        ends = np.array([False, True, True])[start:stop]
        return ChunkRows(ends, np.array([-2.75, np.nan], np.float32)[start // 2 : start // 2 + 1])
    p = np.array([[0.6, 0.25, 0.1], [0.5, 0.3, 0.15], [0.9, 0.05, 0.01]])[start:stop]
    ids = np.array([[65_536, 3, 151_935], [0, 65_535, 70_000], [151_645, 2, 1]], np.int32)[start:stop]
    common: dict[str, Any] = {
        "actual_logprobs_R": np.array([-0.5, -2.25, -0.125], np.float32)[start:stop],
        "entropy_R": np.array([1.5, np.nan, 0.25], np.float32)[start:stop],
        "logsumexp_RJ": np.array([[1.25], [1.5], [0.75]], np.float32)[start:stop],
    }
    if kind == "top_k":
        return TopKRows(ids, np.log(p).astype(np.float32), **common)
    rows = stop - start
    if kind == "sampled":
        return SampledRows(
            ids.reshape(-1), np.tile([7, 2, 1], rows).astype(np.int32), np.full(rows, 3, np.int32), **common
        )
    heads = np.full(rows, 1, np.int32)
    draws = np.tile([3, 1], rows).astype(np.int32)
    return HeadTailRows(ids.reshape(-1), heads, heads * 2, np.log(p[:, 0]).astype(np.float32), draws, **common)


def decoded(cache: Path) -> list[dict[str, Any]]:
    reader, found = CacheReader(cache), []
    for number in range(len(reader)):
        record = reader.read(number)
        ids_RK, logprobs_RK = record.rows.decode(VOCABULARY)
        found.append(
            {
                "key": record.key.hex(),
                "split": int(reader.splits[number]),
                "token_ids": record.token_ids_N.tolist(),
                "supervised": record.supervised_N.tolist(),
                "finish_reason": record.finish_reason,
                "source": record.source,
                "ids": ids_RK.tolist(),
                "probabilities": np.exp(logprobs_RK.double().numpy()).round(6).tolist(),
                "mass": record.rows.mass_R.double().numpy().round(6).tolist(),
                "actual": _known(record.rows.actual_logprobs_R),
                "entropy": _known(record.rows.entropy_R),
                "logsumexp": record.rows.logsumexp_RJ.tolist(),
            }
        )
        if reader.spec.kind == "chunks":
            found[-1]["chunk_ends"] = record.rows.chunk_ends_R.tolist()
            found[-1]["chunk_logprobs"] = _known(record.rows.chunk_logprobs_E)
    return found


def _known(values: torch.Tensor) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_golden_files_are_read(kind: str, compression: str) -> None:
    folder = GOLDEN / f"{kind}-{compression}"
    expected = json.loads((GOLDEN / f"{kind}.json").read_text())
    found = decoded(folder)
    for record, said in zip(found, expected, strict=True):
        assert np.allclose(record.pop("probabilities"), said.pop("probabilities"), atol=2e-6)
        assert record == said
    assert not verify(folder).damaged


@pytest.mark.parametrize("kind", KINDS)
def test_golden_files_are_written(tmp_path: Path, kind: str) -> None:
    summary = write_shard(tmp_path, golden_records(kind), golden_spec(kind), "fake 1", "none")
    assert (tmp_path / summary.name).read_bytes() == (GOLDEN / f"{kind}-none" / "shards" / summary.name).read_bytes()


def test_golden_values_are_what_went_in() -> None:
    """The expected values against the hand-made rows, within the codec's bound: the golden files cannot drift."""
    top_k = json.loads((GOLDEN / "top_k.json").read_text())
    assert np.allclose(top_k[0]["probabilities"], [[0.6, 0.25, 0.1], [0.5, 0.3, 0.15]], rtol=0.03)
    assert top_k[0]["mass"] == pytest.approx([0.95, 0.95])
    assert json.loads((GOLDEN / "sampled.json").read_text())[1]["probabilities"] == [[0.7, 0.2, 0.1]]
    chunks = json.loads((GOLDEN / "chunks.json").read_text())
    assert [record["chunk_ends"] for record in chunks] == [[False, True], [True]]
    assert [record["chunk_logprobs"] for record in chunks] == [[-2.75], [None]]
    head_tail = json.loads((GOLDEN / "head_tail.json").read_text())
    assert np.allclose(head_tail[0]["probabilities"], [[0.6, 0.3, 0.1], [0.5, 0.375, 0.125]], atol=1e-6)


if __name__ == "__main__":
    for kind in KINDS:
        for compression in ("none", "zstd"):
            folder = GOLDEN / f"{kind}-{compression}" / "shards"
            write_shard(folder, golden_records(kind), golden_spec(kind), "fake 1", compression)  # type: ignore[arg-type]
        (GOLDEN / f"{kind}.json").write_text(json.dumps(decoded(GOLDEN / f"{kind}-none"), indent=1) + "\n")
