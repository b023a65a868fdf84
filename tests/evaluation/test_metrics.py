"""Against a dense float64 reference: the full distributions are known, the cache's rows are made from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmdistill.cache import schema
from llmdistill.cache.reader import StoredRecord
from llmdistill.cache.rows import EncodedRows, encode_rows
from llmdistill.evaluation.metrics import model_values, teacher_values, top_agreement
from llmdistill.evaluation.teacher_side import TeacherSide, teacher_side
from llmdistill.types import CaptureSpec, HeadTailRows, SampledRows, TeacherRows, TopKRows

VOCABULARY, ROWS = 40, 64


def dense(seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher's and model's log-probabilities [R, V] in float64, and actual ids drawn from the teacher."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (2, rows, VOCABULARY))
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    actual = np.array([rng.choice(VOCABULARY, p=np.exp(row)) for row in logprobs[0]])
    return logprobs[0], logprobs[1], actual


def spec_of(kind: str, **changes: object) -> CaptureSpec:
    spec = CaptureSpec("generate", kind, 0, VOCABULARY, "t", "k", "fake", "float32", {"temperature": 1.0}, (), "f16")
    return replace(spec, **changes)


def stored(rows: TeacherRows, spec: CaptureSpec, actual: np.ndarray) -> TeacherSide:
    """Through the columns of a shard, as the reader gives them; a token before the first makes the alignment."""
    columns = {}
    known = {column.name for column in schema.columns(spec)}
    for name, column in encode_rows([rows], spec).items():
        if name in known:
            columns[name] = torch.from_numpy(column.view(np.int16) if column.dtype == np.uint16 else column)
    ids = torch.from_numpy(np.concatenate([[0], actual]))
    supervised = torch.arange(len(ids)) > 0
    return teacher_side(StoredRecord(b"0" * 16, ids, supervised, EncodedRows(spec, columns), "stop", ""))


def common(p_RV: np.ndarray, actual: np.ndarray, *, entropy: bool = True) -> dict[str, np.ndarray | None]:
    entropy_R = -(np.exp(p_RV) * p_RV).sum(axis=1) if entropy else None
    return {"actual_logprobs_R": p_RV[np.arange(len(actual)), actual], "entropy_R": entropy_R}


def top_k(p_RV: np.ndarray, actual: np.ndarray, k: int) -> TeacherSide:
    ids = np.argsort(-p_RV, axis=1)[:, :k].astype(np.int32)
    rows = TopKRows(ids, np.take_along_axis(p_RV, ids, 1).astype(np.float32), **common(p_RV, actual))
    return stored(rows, spec_of("top_k", top_k=k, logprobs="u12"), actual)


def test_top_k_of_the_whole_vocabulary_is_exact() -> None:
    p, q, actual = dense()
    values = {name: value.numpy() for name, value in model_values(torch.from_numpy(q), top_k(p, actual, 40)).items()}
    order_p, order_q = np.argsort(-p, axis=1), np.argsort(-q, axis=1)
    common_5 = [len(set(a[:5]) & set(b[:5])) / 5 for a, b in zip(order_p, order_q, strict=True)]
    expected = {
        "kl": (np.exp(p) * (p - q)).sum(axis=1),
        "reverse_kl": (np.exp(q) * (q - p)).sum(axis=1),
        "top1_agreement": order_p[:, 0] == order_q[:, 0],
        "top5_agreement": common_5,
        "acceptance_rate": np.minimum(np.exp(p), np.exp(q)).sum(axis=1),
        "acceptance_rate_lower": np.minimum(np.exp(p), np.exp(q)).sum(axis=1),
        "cross_entropy": -q[np.arange(ROWS), actual],
        "confidence": np.exp(q).max(axis=1),
        "correct": order_q[:, 0] == actual,
    }
    assert set(values) == set(expected)
    for name, value in expected.items():
        # 12 bits a log-probability; everything that is linear in it must still be within 1e-4 on average.
        assert values[name].mean() == pytest.approx(np.mean(value), abs=1e-4), name
        assert values[name] == pytest.approx(np.array(value, float), abs=5e-3), name


def test_top_k_with_a_tail_bounds_the_dense_values_from_the_sides_that_it_says() -> None:
    p, q, actual = dense()
    values = model_values(torch.from_numpy(q), top_k(p, actual, 8))
    full = np.minimum(np.exp(p), np.exp(q)).sum(axis=1)
    assert (values["acceptance_rate_lower"].numpy() <= full + 1e-4).all()
    assert (full <= values["acceptance_rate"].numpy() + 1e-4).all()
    assert (values["kl"].numpy() <= (np.exp(p) * (p - q)).sum(axis=1) + 1e-4).all()
    assert (values["reverse_kl"].numpy() <= (np.exp(q) * (q - p)).sum(axis=1) + 1e-4).all()
    assert (values["acceptance_rate"] - values["acceptance_rate_lower"]).min() >= 0
    # The exact figures of the kept ids and one bucket, computed densely.
    ids = np.argsort(-p, axis=1)[:, :8]

    def bucketed(logprobs: np.ndarray) -> np.ndarray:
        kept = np.take_along_axis(np.exp(logprobs), ids, 1)
        return np.concatenate([kept, 1 - kept.sum(axis=1, keepdims=True)], axis=1)

    p_E, q_E = bucketed(p), bucketed(q)
    assert values["kl"].mean() == pytest.approx((p_E * np.log(p_E / q_E)).sum(axis=1).mean(), abs=1e-4)
    assert values["acceptance_rate"].mean() == pytest.approx(np.minimum(p_E, q_E).sum(axis=1).mean(), abs=1e-4)


def test_head_tail_is_unbiased_with_an_entropy_and_a_bucket_without() -> None:
    p, q, actual = dense(rows=1)
    size, draws = 4, 12
    order = np.argsort(-p[0])[:size]
    rest = np.exp(p[0]).copy()
    rest[order] = 0
    rng = np.random.default_rng(1)
    found = []
    for entropy in (True, False):
        sides = []
        for _ in range(4000 if entropy else 1):
            count = int(np.ceil(draws * rest.sum()))
            ids, counts = np.unique(rng.choice(VOCABULARY, count, p=rest / rest.sum()), return_counts=True)
            rows = HeadTailRows(
                np.concatenate([order, ids]).astype(np.int32), np.array([size]), np.array([len(ids)]),
                p[0, order].astype(np.float32), counts, **common(p, actual, entropy=entropy),
            )  # fmt: skip
            spec = spec_of("head_tail", draws=draws, head_mass=1.0, head_size=size, logprobs="u12")
            sides.append(model_values(torch.from_numpy(q), stored(rows, spec, actual)))
        found.append({name: torch.stack([side[name] for side in sides]).mean().item() for name in sides[0]})
    full = (np.exp(p) * (p - q)).sum()
    assert found[0]["kl"] == pytest.approx(full, abs=0.02)  # the mean over 4,000 draws
    assert "top5_agreement" not in found[0]
    head_p, head_q = np.exp(p[0, order]), np.exp(q[0, order])
    p_E, q_E = np.append(head_p, 1 - head_p.sum()), np.append(head_q, 1 - head_q.sum())
    bucket = (p_E * np.log(p_E / q_E)).sum()
    assert found[1]["kl"] == pytest.approx(bucket, abs=1e-3)
    assert bucket < full
    assert found[0]["acceptance_rate"] == pytest.approx(np.minimum(p_E, q_E).sum(), abs=1e-3)
    assert found[0]["top1_agreement"] == (p.argmax() == q.argmax())


def test_sampled_has_its_divergence_and_acceptance_from_tokens_that_the_teacher_drew() -> None:
    p, q, _ = dense(rows=1)
    rng = np.random.default_rng(2)
    many = 40_000
    actual = rng.choice(VOCABULARY, many, p=np.exp(p[0]))
    wide = np.repeat(p, many, axis=0)
    draws = rng.choice(VOCABULARY, (many, 1), p=np.exp(p[0])).astype(np.int32)
    rows = SampledRows(
        draws[:, 0], np.ones(many, np.int32), np.ones(many, np.int32), **common(wide, actual, entropy=False)
    )
    side = stored(rows, spec_of("sampled", draws=1), actual)
    values = model_values(torch.from_numpy(np.repeat(q, many, axis=0)), side)
    assert values["acceptance_rate"].mean() == pytest.approx(np.minimum(np.exp(p), np.exp(q)).sum(), abs=0.01)
    assert values["kl"].mean() == pytest.approx((np.exp(p) * (p - q)).sum(), abs=0.05)
    assert "reverse_kl" not in values and "top1_agreement" not in values

    elsewhere = replace(spec_of("sampled", draws=1), sampling={"temperature": 0.7})
    values = model_values(torch.from_numpy(np.repeat(q, many, axis=0)), stored(rows, elsewhere, actual))
    assert values["kl"].isnan().all()
    assert "acceptance_rate" not in values


def test_teacher_values_are_those_of_its_distribution() -> None:
    p, _, actual = dense()
    whole = teacher_values(top_k(p, actual, 8))
    assert whole["confidence"].numpy() == pytest.approx(np.exp(p).max(axis=1), abs=2e-3)
    assert whole["correct"].numpy() == pytest.approx((p.argmax(axis=1) == actual).astype(float))
    entropy = -(np.exp(p) * p).sum(axis=1)
    assert whole["entropy"].numpy() == pytest.approx(entropy, abs=2e-3)
    ids = np.argsort(-p, axis=1)[:, :8].astype(np.int32)
    rows = TopKRows(ids, np.take_along_axis(p, ids, 1).astype(np.float32), **common(p, actual, entropy=False))
    unknown = teacher_values(stored(rows, spec_of("top_k", top_k=8), actual))
    assert unknown["stored_entropy"].isnan().all()
    assert (unknown["entropy"].numpy() <= entropy + 1e-3).all()
    assert (unknown["entropy"].numpy() > 0).all()


def test_top_agreement_counts_common_tokens_whatever_their_order() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0]])
    assert top_agreement(logits, torch.tensor([[4, 3, 2, 1, 0]])).item() == 1
    assert top_agreement(logits, torch.tensor([[6, 5, 2, 1, 0]])).item() == pytest.approx(0.6)
