"""Token ids and log-probabilities as few bytes; `docs/format.md` states the same for readers in other languages.

Ids. The low 16 bits are one array; the bits above them (none below 65,537 tokens, 2 for Qwen's 151,936) are packed in
fields of 1, 2, 4 or 8 bits, first entry in the lowest bits. Exact.

Log-probabilities. With m = 2^bits - 1, a value l ≤ 0 becomes the code round(m·log(1 + min(-l, 24)/2) / log 13) and back
-2·(13^(code/m) - 1), a table look-up. The logarithm spends the codes where the probability is: the error of an entry
with l ≥ -24 is at most (2 - l)·(13^(1/2m) - 1), that is 0.015 at l = -1 and 0.09 at l = -16 with 8 bits. The sum of the
kept probabilities is stored beside the codes; decoding rescales the entries to that sum, so the tail mass is exact and
the error of first order is gone. `f16` stores IEEE half precision instead.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

FLOOR = 24.0
"""Log-probabilities below -FLOOR are stored as -FLOOR (by `f16`: below -65504)."""
KNEE = 2.0
"""Where the spacing of the codes goes from even to geometric."""
_RANGE = math.log1p(FLOOR / KNEE)

CODE_BITS = {"u4": 4, "u8": 8, "u12": 12}
"""Companded formats and their width."""
LOGPROB_FORMATS = (*CODE_BITS, "f16")


def high_bits(vocabulary_size: int) -> int:
    """Width of the packed field for the bits of an id above the lowest 16: 0, 1, 2, 4 or 8."""
    needed = max(int(vocabulary_size - 1).bit_length() - 16, 0)
    for width in (0, 1, 2, 4, 8):
        if needed <= width:
            return width
    raise ValueError(f"a vocabulary of {vocabulary_size} needs more than 24 bits")


def packed_size(count: int, width: int) -> int:
    """Bytes of `count` fields of `width` bits."""
    return -(-count * width // 8)


def pack_fields(values: np.ndarray, width: int) -> np.ndarray:
    """Pack values [..., n] below 2^width, width 0, 1, 2, 4 or 8, into uint8 [..., ceil(n·width/8)], lowest first."""
    if width == 0:
        return np.zeros((*values.shape[:-1], 0), np.uint8)
    values = values.astype(np.uint8)
    if width == 8:
        return values
    per_byte = 8 // width
    if padding := -values.shape[-1] % per_byte:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)])
    packed = values[..., ::per_byte].copy()
    for field in range(1, per_byte):
        packed |= values[..., field::per_byte] << np.uint8(field * width)
    return packed


def unpack_fields(packed: np.ndarray, width: int, start: int, count: int) -> np.ndarray:
    """Fields start … start + count - 1 of one packed array [n] as uint8 [count]."""
    if width in (0, 8):
        return packed[start : start + count] if width else np.zeros(count, np.uint8)
    per_byte = 8 // width
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    touched = packed[start // per_byte : packed_size(start + count, width), None]
    fields = (touched >> shifts) & np.uint8((1 << width) - 1)
    found: np.ndarray = fields.reshape(-1)[start % per_byte : start % per_byte + count]
    return found


def encode_ids(ids: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ids [..., K] into low halves uint16 [..., K] and packed high bits uint8 [..., ceil(K·h/8)].

    Raises:
        ValueError: an id is negative or not below `vocabulary_size`.
    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary_size):
        raise ValueError(f"ids must be 0 … {vocabulary_size - 1}, found {ids.min()} … {ids.max()}")
    width = high_bits(vocabulary_size)
    low = ids.astype(np.uint16)
    return low, pack_fields(ids >> 16, width) if width else pack_fields(ids, 0)


def decode_ids(low: torch.Tensor, high: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """The inverse of `encode_ids`: int64 [..., K], on its device; `low` holds uint16 or its bits as int16."""
    ids = low.view(torch.uint16).to(torch.int64)
    width = high_bits(vocabulary_size)
    if width == 0:
        return ids
    return ids.add_(_unpack(high, width, low.shape[-1]), alpha=1 << 16)


def _unpack(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """Fields of `width` bits, [..., count], as uint8."""
    if width == 8:
        return packed
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    fields = (packed.unsqueeze(-1) >> shifts).bitwise_and_((1 << width) - 1)
    return fields.flatten(-2)[..., :count]


def check_logprobs(logprobs: np.ndarray, mass_R: np.ndarray) -> np.ndarray:
    """The masses, at most 1, as float32.

    Raises:
        ValueError: a value is NaN or above 0, or a row's probabilities sum to more than 1.
    """
    # float32 log-softmax may overshoot by some units in the last place; anything more is a fault of the engine.
    if not (logprobs <= 1e-5).all() or not (mass_R <= 1 + 1e-4).all():
        raise ValueError("log-probabilities must be numbers ≤ 0 whose probabilities sum to at most 1")
    checked: np.ndarray = np.minimum(mass_R, 1.0).astype(np.float32)
    return checked


def encode_logprobs(logprobs: np.ndarray, format: str) -> np.ndarray:
    """Store checked log-probabilities [..., K].

    Returns:
        `u8`: uint8 [..., K]; `u4`: uint8 [..., ceil(K/2)], two codes a byte; `u12`: uint16 [..., K]; `f16`: float16
        [..., K].
    """
    logprobs = np.asarray(logprobs, np.float32)
    if format == "f16":
        return np.clip(logprobs, np.finfo(np.float16).min, 0).astype(np.float16)
    bits = CODE_BITS[format]
    scaled = np.clip(logprobs, -FLOOR, 0.0)
    scaled *= np.float32(-1 / KNEE)
    scaled += np.float32(1)
    np.log(scaled, out=scaled)
    scaled *= np.float32(((1 << bits) - 1) / _RANGE)
    np.rint(scaled, out=scaled)
    if bits == 12:
        return scaled.astype(np.uint16)
    codes = scaled.astype(np.uint8)
    return pack_fields(codes, 4) if bits == 4 else codes


@functools.cache
def table(format: str, device: torch.device) -> torch.Tensor:
    """float32 [2, 2^bits]: the log-probability of each code, and its probability."""
    codes = torch.arange(1 << CODE_BITS[format], dtype=torch.float64)
    values = -KNEE * torch.expm1(codes * (_RANGE / (len(codes) - 1)))
    return torch.stack([values, values.exp()]).to(torch.float32).to(device)


def dequantise(stored: torch.Tensor, format: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities float32 [..., K] of stored ones (a code an element), and their probabilities; not rescaled."""
    if format == "f16":
        logprobs = stored.to(torch.float32)
        return logprobs, logprobs.exp()
    logprob_table, probability_table = table(format, stored.device)
    indices = (stored.view(torch.uint16) if format == "u12" else stored).to(torch.int32).reshape(-1)
    return (
        logprob_table.index_select(0, indices).view(stored.shape),
        probability_table.index_select(0, indices).view(stored.shape),
    )


def decode_logprobs(stored_RK: torch.Tensor, mass_R: torch.Tensor, format: str, count: int) -> torch.Tensor:
    """Log-probabilities float32 [R, K] whose probabilities sum to `mass_R`, on the device of the inputs.

    Args:
        stored_RK: what `encode_logprobs` made of them; uint16 may come as int16 of the same bits.
        mass_R: float32 [R].
        format: one of `LOGPROB_FORMATS`.
        count: K.
    """
    codes_RK = _unpack(stored_RK, 4, count) if format == "u4" else stored_RK
    logprobs_RK, probabilities_RK = dequantise(codes_RK, format)
    return logprobs_RK.add_((mass_R / probabilities_RK.sum(dim=-1)).log_().unsqueeze(-1))
