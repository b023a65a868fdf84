from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.evaluation.heldout import evaluate_model
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
    result = evaluate_model(tiny_teacher, CacheReader(tmp_path), np.arange(3))

    model = load_student(tiny_teacher, torch.float64).eval()
    kl, agreement, cross_entropy = [], [], []
    for tokens, ids, p in dense:
        with torch.inference_mode():
            logprobs = model(torch.from_numpy(tokens).long().unsqueeze(0)).logits[0].log_softmax(-1)[3:-1].numpy()
        q = np.take_along_axis(logprobs, ids.astype(int), axis=1)
        kl += (p * (np.log(p) - q)).sum(axis=1).tolist()
        agreement += (logprobs.argmax(axis=1) == ids[:, 0]).tolist()
        cross_entropy += (-logprobs[np.arange(len(ids)), tokens[4:]]).tolist()
    assert result.kl == pytest.approx(np.mean(kl), rel=2e-3)  # the cache quantises
    assert result.top1_agreement == pytest.approx(np.mean(agreement))
    assert np.log(result.perplexity) == pytest.approx(np.mean(cross_entropy), rel=1e-4)
