"""Filling `columns.py`'s layout on the device, from log-probabilities, in chunks of rows.

Draws are reproducible: a row's uniform numbers are a hash of its record's key and its token's position, so they do not
depend on batches, chunks, replicas or restarts (beyond the rounding of the log-probabilities themselves). Ids are drawn
by inverting the cumulative distribution in float64.
"""

from __future__ import annotations

import numpy as np
import torch

from llmdistill.teacher.columns import NOTHING, STATISTIC, Columns

_CHUNK_ELEMENTS = {"cpu": 1 << 19, "other": 1 << 24}
"""Elements of a chunk of rows: what fits a core's cache; what fills a GPU and is small beside its memory."""
_SMALLEST_LOGPROB = -1e4
"""exp of it is 0 in float32; keeps 0 · log 0 out of the entropy."""


def fill_columns(
    logprobs_RV: torch.Tensor,
    actual_ids_R: torch.Tensor,
    seeds_R: np.ndarray,
    positions_R: np.ndarray,
    columns: Columns,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Capture rows.

    Args:
        logprobs_RV: float32, at temperature 1, over at least `columns.vocabulary_size` ids; further ids (padding rows
            of the head) are cut off and the rest is normalised anew.
        actual_ids_R: int64, the token that really follows each row.
        seeds_R: uint64, of each row's record (`draw_seed`).
        positions_R: position of the actual token in its sequence.
        columns: the layout.

    Returns:
        ids int32 [R, 1 + width] and values float32 [R, 1 + width], on the device of the input.

    """
    rows, vocabulary = logprobs_RV.shape
    shape = (rows, 1 + columns.width)
    ids_RW = torch.empty(shape, dtype=torch.int32, device=logprobs_RV.device)
    values_RW = torch.empty(shape, dtype=torch.float32, device=logprobs_RV.device)
    uniforms_RN = torch.from_numpy(uniforms(seeds_R, positions_R, columns.draws)).to(logprobs_RV.device)
    elements = _CHUNK_ELEMENTS["cpu" if logprobs_RV.device.type == "cpu" else "other"]
    step = max(elements // vocabulary, 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        ids, values = _fill_chunk(logprobs_RV[part], actual_ids_R[part], uniforms_RN[part], columns)
        torch.cat([part.to(torch.int32) for part in ids], dim=1, out=ids_RW[part])
        torch.cat([part.to(torch.float32) for part in values], dim=1, out=values_RW[part])
    return ids_RW, values_RW


def draw_seed(key: bytes) -> int:
    """Seed of a record's draws, 0 … 2^64-1, from its key."""
    return int.from_bytes(key[:8], "little")


def uniforms(seeds_R: np.ndarray, positions_R: np.ndarray, count: int) -> np.ndarray:
    """float64 [R, count] in [0, 1 - 2^-48]: a hash of seed, position and number by splitmix64 (Steele et al. 2014)."""
    keys_R = _mix(seeds_R.astype(np.uint64) ^ _mix(positions_R.astype(np.uint64) + _GOLDEN))
    numbers_N = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    # 48 bits: scaled by any total, the largest stays below that total.
    found: np.ndarray = (_mix(keys_R[:, None] + numbers_N) >> np.uint64(16)) * 2.0**-48
    return found


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _fill_chunk(
    logprobs_RV: torch.Tensor, actual_ids_R: torch.Tensor, uniforms_RN: torch.Tensor, columns: Columns
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    known = columns.vocabulary_size
    if logprobs_RV.shape[1] > known:
        logprobs_RV = logprobs_RV[:, :known]
        logprobs_RV = logprobs_RV - logprobs_RV.logsumexp(dim=1, keepdim=True)
    actual_R1 = actual_ids_R.unsqueeze(1)
    actual_logprobs_R1 = logprobs_RV.gather(1, actual_R1.clamp(max=known - 1))
    # Whoever reads the columns sees the id and rejects the record.
    actual_logprobs_R1 = actual_logprobs_R1.masked_fill(actual_R1 >= known, torch.nan)
    ids, values = [actual_R1], [actual_logprobs_R1]
    probabilities_RV = logprobs_RV.exp()
    if columns.statistics:
        entropy_R1 = -(probabilities_RV * logprobs_RV.clamp(min=_SMALLEST_LOGPROB)).sum(dim=1, keepdim=True)
        values.append(entropy_R1)
        values += [(logprobs_RV / temperature).logsumexp(dim=1, keepdim=True) for temperature in columns.temperatures]
        ids.append(actual_R1.new_full((len(actual_R1), columns.before_entries - 1), STATISTIC))
    if columns.kind == "top_k":
        top = logprobs_RV.topk(columns.top_k, dim=1)
        return [*ids, top.indices], [*values, top.values]
    if columns.kind == "head_tail":
        top = logprobs_RV.topk(columns.head_size, dim=1)
        top_RH = top.values.double().exp()
        in_head_RH = top_RH.cumsum(dim=1) - top_RH < columns.head_mass
        ids.append(top.indices.masked_fill(~in_head_RH, NOTHING))
        values.append(top.values.masked_fill(~in_head_RH, NOTHING))
        probabilities_RV.scatter_(1, top.indices, top.values.exp().masked_fill_(in_head_RH, 0.0))
    draws_RN = _draw(probabilities_RV, uniforms_RN, shrink=columns.kind == "head_tail")
    if columns.draws % 2:
        draws_RN = torch.nn.functional.pad(draws_RN, (0, 1), value=NOTHING)
    return [*ids, draws_RN[:, ::2]], [*values, draws_RN[:, 1::2]]


def _draw(weights_RV: torch.Tensor, uniforms_RN: torch.Tensor, shrink: bool) -> torch.Tensor:
    """Sorted draws int64 [R, N] with replacement, in proportion to the weights.

    With `shrink`, a row whose weights sum to ρ keeps the first ⌈N·ρ⌉ of them; the places of the others, behind, hold
    NOTHING.
    """
    count = uniforms_RN.shape[1]
    cumulative_RV = weights_RV.cumsum(dim=1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:].contiguous()
    draws_RN = torch.searchsorted(cumulative_RV, uniforms_RN * total_R1, right=True)
    if not shrink:
        return draws_RN.sort(dim=1).values
    unused = weights_RV.shape[1]
    kept_R1 = (count * total_R1).ceil()
    drawn_N = torch.arange(count, device=draws_RN.device)
    draws_RN = draws_RN.masked_fill(drawn_N >= kept_R1, unused).sort(dim=1).values
    return draws_RN.masked_fill_(draws_RN == unused, NOTHING)
