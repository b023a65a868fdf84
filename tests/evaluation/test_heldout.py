import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.evaluation.heldout import measure_model, measure_teacher
from llmdistill.evaluation.intervals import Bootstrap
from llmdistill.evaluation.summary import summarise
from llmdistill.student.creation import load_student
from llmdistill.types import CaptureSpec, Record, TopKRows

SPEC = CaptureSpec("score", "top_k", 8, 49152, "t", "k", "fake", "float32", {})


def test_means_equal_a_dense_computation_in_float64(tiny_teacher: Path, tmp_path: Path) -> None:
    """Teacher: a random distribution with all its mass on 8 tokens, so that nothing is lost by keeping 8."""
    generator = np.random.default_rng(3)
    records, dense = [], []
    for number in range(3):
        tokens = generator.integers(3, 49152, 12 + number).astype(np.int32)
        rows = len(tokens) - 4
        ids = np.stack([generator.choice(49152, 8, replace=False) for _ in range(rows)]).astype(np.int32)
        p = np.sort(generator.dirichlet(np.ones(8), rows), axis=1)[:, ::-1]
        rows_kept = TopKRows(ids, np.log(p).astype(np.float32), np.full(rows, -1.0, np.float32))
        supervised = np.arange(len(tokens)) >= 4
        records.append(Record(bytes([number] * 16), tokens, supervised, rows_kept, "scored"))
        dense.append((tokens, ids, p))
    write_shard(shard_folder(tmp_path), records, SPEC, "fake-1")
    reader, numbers = CacheReader(tmp_path), np.arange(3)
    table = measure_model(load_student(tiny_teacher, torch.float32).eval(), reader, numbers)
    summary = summarise(
        {"untrained": table, "student": table},
        measure_teacher(reader, numbers),
        ["a", "a", "b"],
        reader.spec,
        False,
        Bootstrap(3, 200),
        (np.array([10.0, 20.0, 30.0]), np.array([10.0, 20.0, 30.0])),
        "untrained",
    )
    result = summary["models"]["student"]

    model = load_student(tiny_teacher, torch.float64).eval()
    kl, agreement, cross_entropy = [], [], []
    for tokens, ids, p in dense:
        with torch.inference_mode():
            logprobs = model(torch.from_numpy(tokens).long().unsqueeze(0)).logits[0].log_softmax(-1)[3:-1].numpy()
        q = np.take_along_axis(logprobs, ids.astype(int), axis=1)
        kl += (p * (np.log(p) - q)).sum(axis=1).tolist()
        agreement += (logprobs.argmax(axis=1) == ids[:, 0]).tolist()
        cross_entropy += (-logprobs[np.arange(len(ids)), tokens[4:]]).tolist()
    assert result["kl"] == pytest.approx(np.mean(kl), rel=2e-3)  # the cache quantises
    assert result["top1_agreement"] == pytest.approx(np.mean(agreement))
    assert np.log(result["perplexity"]) == pytest.approx(np.mean(cross_entropy), abs=1e-4)
    assert result["bits_per_byte"] == pytest.approx(np.sum(cross_entropy) / np.log(2) / 60, abs=1e-3)
    low, high = result["intervals"]["kl"]
    assert low < result["kl"] < high
    by_source = result["by"]["source"]
    assert {name: group["records"] for name, group in by_source.items()} == {"a": 2, "b": 1}
    assert by_source["b"]["kl"] == pytest.approx(np.mean(kl[17:]), rel=2e-3)
    assert by_source["b"]["intervals"]["kl"] is None
    assert sum(group["rows"] for group in result["by"]["position"].values()) == len(kl)
    assert summary["teacher"]["perplexity"] == pytest.approx(np.e, rel=1e-3)
    comparison = summary["comparison"]
    assert comparison["differences"]["kl"] == {"value": 0.0, "interval": (0.0, 0.0)}
    assert comparison["recovery"]["kl"]["value"] == 0.0
    json.dumps(summary, allow_nan=False)
