from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.cache.codec import (
    CODE_BITS,
    LOGPROB_FORMATS,
    check_logprobs,
    decode_ids,
    decode_logprobs,
    encode_ids,
    encode_logprobs,
    high_bits,
    pack_fields,
    packed_size,
    unpack_fields,
)


def as_torch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


@pytest.mark.parametrize(
    ("vocabulary", "bits"), [(2, 0), (49_152, 0), (65_536, 0), (65_537, 1), (151_936, 2), (2**24, 8)]
)
def test_high_bits_follow_the_vocabulary(vocabulary: int, bits: int) -> None:
    assert high_bits(vocabulary) == bits


def test_ids_at_the_16_bit_border_survive() -> None:  # case T5
    ids = np.array([[0, 65_535, 65_536, 151_645]])
    low, high = encode_ids(ids, 151_936)
    assert low.dtype == np.uint16
    assert decode_ids(as_torch(low), as_torch(high), 151_936).tolist() == ids.tolist()


@pytest.mark.parametrize("wrong", [-1, 151_936, 2**31])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"0 … 151935"):
        encode_ids(np.array([[3, wrong]]), 151_936)


@given(st.sampled_from([2, 300, 65_536, 65_537, 70_000, 151_936, 300_000, 2**24]), st.integers(0, 9), st.data())
def test_ids_round_trip(vocabulary: int, k: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, vocabulary - 1), min_size=k, max_size=k), max_size=5))
    ids = np.array(rows, np.int32).reshape(len(rows), k)
    low, high = encode_ids(ids, vocabulary)
    assert decode_ids(as_torch(low), as_torch(high), vocabulary).tolist() == ids.tolist()


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_any_slice_of_packed_fields_can_be_read(width: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.uint8)
    start = data.draw(st.integers(0, len(values)))
    count = data.draw(st.integers(0, len(values) - start))
    packed = pack_fields(values, width)
    assert len(packed) == packed_size(len(values), width)
    assert unpack_fields(packed, width, start, count).tolist() == values[start : start + count].tolist()


def distributions(rows: int, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0.1, 6, (rows, 1)), (rows, 4 * k))
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -np.sort(-logprobs, axis=1)[:, :k]


@settings(deadline=None)
@given(st.sampled_from(LOGPROB_FORMATS), st.integers(1, 70), st.integers(0, 10**6))
def test_logprobs_keep_mass_order_and_bound(format: str, k: int, seed: int) -> None:
    logprobs = distributions(20, k, seed).astype(np.float32)
    mass = check_logprobs(logprobs, np.exp(logprobs.astype(np.float64)).sum(1))
    decoded = decode_logprobs(as_torch(encode_logprobs(logprobs, format)), torch.from_numpy(mass), format, k).numpy()
    assert np.allclose(np.exp(decoded.astype(np.float64)).sum(1), mass, rtol=2e-6)
    assert (np.diff(decoded, axis=1) <= 0).all()
    if format in CODE_BITS:
        half_step = 13 ** (1 / (2 * (2 ** CODE_BITS[format] - 1))) - 1
        # Rescaling moves a row by no more than the largest error of its entries.
        inside = np.maximum(logprobs, -24)
        bound = (2 - inside) * half_step
        assert (np.abs(decoded - inside) <= bound + bound.max(1, keepdims=True) + 1e-4).all()


def test_u8_divergence_is_within_the_promise() -> None:
    logprobs = distributions(4000, 64, 7).astype(np.float32)
    p = np.exp(logprobs.astype(np.float64))
    mass = torch.from_numpy(p.sum(1).astype(np.float32))
    decoded = decode_logprobs(as_torch(encode_logprobs(logprobs, "u8")), mass, "u8", 64).double().numpy()
    kl = (p * (logprobs - decoded)).sum(1) / p.sum(1)
    # These rows are flatter than a language model's; benchmarks/cache.py measures real ones (≤ 1e-4).
    assert kl.mean() <= 2e-4
    assert kl.max() <= 1e-3
    coarser = decode_logprobs(as_torch(encode_logprobs(logprobs, "u4")), mass, "u4", 64).double().numpy()
    assert ((p * (logprobs - coarser)).sum(1) / p.sum(1)).mean() > 10 * kl.mean()


@pytest.mark.parametrize("logprobs", [[np.nan], [0.1], [-0.1, -0.1], [np.inf]])
def test_impossible_logprobs_are_refused(logprobs: list[float]) -> None:
    values = np.array([logprobs], np.float32)
    with pytest.raises(ValueError, match="at most 1"):
        check_logprobs(values, np.exp(values.astype(np.float64)).sum(1))


def test_known_codes() -> None:
    # round(255·log(1 + 1/2)/log 13) = 40; -2·(13^(40/255) - 1) = -0.99066
    assert encode_logprobs(np.array([0.0, -1.0, -24.0, -100.0], np.float32), "u8").tolist() == [0, 40, 255, 255]
    one = decode_logprobs(torch.tensor([[40]], dtype=torch.uint8), torch.tensor([np.exp(-0.99066)]), "u8", 1)
    assert float(one) == pytest.approx(-0.99066, abs=1e-5)
