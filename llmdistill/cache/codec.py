"""Token ids and log-probabilities as few bytes, exactly.

Ids. The low 16 bits are one array; the bits above them (none below 65,537 tokens, 2 for Qwen's 151,936) are packed in
fields of 1, 2, 4 or 8 bits, first entry in the lowest bits.

Log-probabilities. A value l ≤ 0 becomes the byte round(255·sqrt(min(-l, 32)/32)) and back -32·(byte/255)². The square
root spends the codes where the probability is: the error of an entry with l ≥ -32 is at most
(sqrt(-32·l) + 0.07)/255, that is 0.023 at l = -1 and 0.09 at l = -16. Kept beside the codes is the sum of the kept
probabilities; decoding rescales the entries to that sum, so the tail mass is exact and the error of
first order is gone.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

FLOOR = 32.0
"""Log-probabilities below -FLOOR are stored as -FLOOR."""


def high_bits(vocabulary_size: int) -> int:
    """Width of the packed field for the bits of an id above the lowest 16: 0, 1, 2, 4 or 8."""
    needed = max(int(vocabulary_size - 1).bit_length() - 16, 0)
    for width in (0, 1, 2, 4, 8):
        if needed <= width:
            return width
    raise ValueError(f"a vocabulary of {vocabulary_size} needs more than 24 bits")


def encode_ids(ids: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ids [..., K] into low halves uint16 [..., K] and packed high bits uint8 [..., ceil(K·h/8)].

    Raises:
        ValueError: an id is negative or not below `vocabulary_size`.

    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary_size):
        raise ValueError(f"ids must be 0 … {vocabulary_size - 1}, found {ids.min()} … {ids.max()}")
    low = (ids & 0xFFFF).astype(np.uint16)
    width = high_bits(vocabulary_size)
    if width == 0:
        return low, np.zeros((*ids.shape[:-1], 0), np.uint8)
    per_byte = 8 // width
    high = (ids >> 16).astype(np.uint8)
    padding = -ids.shape[-1] % per_byte
    high = np.pad(high, [(0, 0)] * (ids.ndim - 1) + [(0, padding)]).reshape(*ids.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    return low, np.bitwise_or.reduce(high << shifts, axis=-1)


def decode_ids(low: torch.Tensor, high: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """The inverse of `encode_ids`: int64 [..., K], on the device of the inputs."""
    ids = low.to(torch.int64)
    width = high_bits(vocabulary_size)
    if width == 0:
        return ids
    shifts = torch.arange(0, 8, width, dtype=torch.int64, device=high.device)
    fields = (high.to(torch.int64).unsqueeze(-1) >> shifts) & ((1 << width) - 1)
    return ids | (fields.flatten(-2)[..., : ids.shape[-1]] << 16)


def encode_logprobs(logprobs_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise sorted log-probabilities.

    Returns:
        codes uint8 [R, K], and the captured mass float32 [R].

    Raises:
        ValueError: a value is NaN or above 0, or a row's probabilities sum to more than 1.

    """
    logprobs_RK = np.asarray(logprobs_RK, dtype=np.float32)
    mass_R = np.exp(logprobs_RK, dtype=np.float64).sum(axis=-1)
    # float32 log-softmax may overshoot by some units in the last place; anything more is a fault of the engine.
    if not (logprobs_RK <= 1e-5).all() or not (mass_R <= 1 + 1e-4).all():
        raise ValueError("log-probabilities must be numbers ≤ 0 whose probabilities sum to at most 1")
    scaled = np.sqrt(np.clip(-logprobs_RK, 0.0, FLOOR) / np.float32(FLOOR))
    return np.rint(scaled * 255).astype(np.uint8), np.minimum(mass_R, 1.0).astype(np.float32)


@functools.cache
def _table(device: torch.device) -> torch.Tensor:
    codes = torch.arange(256, dtype=torch.float64)
    return (-FLOOR * (codes / 255) ** 2).to(torch.float32).to(device)


def decode_logprobs(codes_RK: torch.Tensor, mass_R: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32 [R, K] whose probabilities sum to `mass_R`, on the device of the inputs."""
    logprobs_RK = _table(codes_RK.device)[codes_RK.to(torch.int64)]
    correction_R = mass_R.log() - torch.logsumexp(logprobs_RK, dim=-1)
    return logprobs_RK + correction_R.unsqueeze(-1)
