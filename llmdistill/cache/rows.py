"""The teacher's rows on their way: from the engine's arrays to columns, and from columns to decoded targets.

`encode_rows` runs in the teacher's process, `EncodedRows.decode` on the trainer's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from llmdistill.cache.codec import (
    check_logprobs,
    decode_ids,
    decode_logprobs,
    dequantise,
    encode_ids,
    encode_logprobs,
    pack_fields,
)
from llmdistill.types import CaptureSpec, ChunkRows, HeadTailRows, SampledRows, TeacherRows, TopKRows

_CLASSES: dict[str, type[TeacherRows]] = {
    "top_k": TopKRows,
    "sampled": SampledRows,
    "head_tail": HeadTailRows,
    "chunks": ChunkRows,
}
_Rows = TypeVar("_Rows", TopKRows, SampledRows, HeadTailRows)


def encode_rows(rows: Sequence[TeacherRows], spec: CaptureSpec) -> dict[str, np.ndarray]:
    """The columns per row, entry, head and tail of `schema.columns`, for the rows of several records.

    Raises:
        ValueError: rows of another kind, ids outside the vocabulary, impossible log-probabilities or counts.
    """
    if not all(isinstance(part, _CLASSES[spec.kind]) for part in rows):
        raise ValueError(f"rows must be {_CLASSES[spec.kind].__name__} for the capture kind {spec.kind!r}")
    if spec.kind == "chunks":
        return _encode_chunks([part for part in rows if isinstance(part, ChunkRows)])
    columns = _statistics([part for part in rows if not isinstance(part, ChunkRows)], spec)
    if spec.kind == "top_k":
        columns |= _encode_top_k([part for part in rows if isinstance(part, TopKRows)], spec)
    elif spec.kind == "sampled":
        columns |= _encode_sampled([part for part in rows if isinstance(part, SampledRows)], spec)
    else:
        columns |= _encode_head_tail([part for part in rows if isinstance(part, HeadTailRows)], spec)
    return columns


def _joined(parts: Sequence[_Rows], name: str) -> np.ndarray:
    return np.concatenate([getattr(part, name) for part in parts])


def _encode_chunks(parts: list[ChunkRows]) -> dict[str, np.ndarray]:
    logprobs_E = np.concatenate([part.logprobs_E for part in parts])
    if (logprobs_E > 1e-5).any():
        raise ValueError("the log-probability of a chunk must be at most 0, or NaN")
    ends_R = np.concatenate([part.ends_R for part in parts])
    return {"chunk_ends": pack_fields(ends_R, 1), "chunk_logprobs": np.minimum(logprobs_E, 0).astype(np.float32)}


def _statistics(rows: Sequence[TopKRows | SampledRows | HeadTailRows], spec: CaptureSpec) -> dict[str, np.ndarray]:
    actual_R = np.concatenate([part.actual_logprobs_R for part in rows])
    if np.isnan(actual_R).any() or (actual_R > 1e-5).any():
        raise ValueError("the log-probability of an actual token must be a number ≤ 0")
    entropy_R = np.concatenate(
        [np.full(len(part.actual_logprobs_R), np.nan) if part.entropy_R is None else part.entropy_R for part in rows]
    )
    if (entropy_R < -1e-3).any() or (entropy_R > np.log(spec.vocabulary_size) + 1e-2).any():
        raise ValueError(f"entropies must be 0 … log {spec.vocabulary_size}")
    smallest = np.finfo(np.float16).min
    columns = {
        "actual_logprobs": np.clip(actual_R, smallest, 0).astype(np.float16),
        "entropies": np.maximum(entropy_R, 0).astype(np.float16),
    }
    if spec.temperatures:
        parts = [part.logsumexp_RJ for part in rows if part.logsumexp_RJ is not None]
        shape = (len(actual_R), len(spec.temperatures))
        if len(parts) != len(rows) or (logsumexps := np.concatenate(parts)).shape != shape:
            raise ValueError(f"log-sum-exps at the temperatures {spec.temperatures} are missing")
        if not np.isfinite(logsumexps).all():
            raise ValueError("a log-sum-exp is not finite")
        columns["logsumexps"] = logsumexps.astype(np.float32)
    return columns


def _ids(ids: np.ndarray, spec: CaptureSpec) -> dict[str, np.ndarray]:
    low, high = encode_ids(ids, spec.vocabulary_size)
    return {"entry_ids_low": low, "entry_ids_high": high}


def _encode_top_k(parts: list[TopKRows], spec: CaptureSpec) -> dict[str, np.ndarray]:
    ids_RK, logprobs_RK = _joined(parts, "ids_RK"), _joined(parts, "logprobs_RK").astype(np.float32, copy=False)
    if ids_RK.shape[1:] != (spec.top_k,):
        raise ValueError(f"rows must have {spec.top_k} entries, found {ids_RK.shape[1:]}")
    if (logprobs_RK[:, 1:] > logprobs_RK[:, :-1]).any():
        raise ValueError("entries must be sorted from the most likely down")
    mass_R = np.exp(logprobs_RK).sum(axis=-1, dtype=np.float64)
    mass_R = check_logprobs(logprobs_RK, mass_R)
    return _ids(ids_RK, spec) | {"mass": mass_R, "entry_logprobs": encode_logprobs(logprobs_RK, spec.logprobs)}


def _encode_sampled(parts: list[SampledRows], spec: CaptureSpec) -> dict[str, np.ndarray]:
    counts_E, entries_R = _joined(parts, "counts_E"), _joined(parts, "entries_R")
    if len(entries_R) and ((entries_R < 1).any() or (segment_sums(counts_E, entries_R) != spec.draws).any()):
        raise ValueError(f"the counts of each row must sum to {spec.draws} draws")
    return _ids(_joined(parts, "ids_E"), spec) | _counts(spec, entry_counts=entries_R, draw_counts=counts_E)


def _encode_head_tail(parts: list[HeadTailRows], spec: CaptureSpec) -> dict[str, np.ndarray]:
    heads_R, tails_R = _joined(parts, "heads_R"), _joined(parts, "tails_R")
    logprobs_H, counts_F = _joined(parts, "head_logprobs_H"), _joined(parts, "tail_counts_F")
    if (heads_R < 1).any() or (heads_R > spec.head_size).any() or (tails_R < 0).any():
        raise ValueError(f"heads must have 1 … {spec.head_size} entries")
    mass_R = check_logprobs(logprobs_H, segment_sums(np.exp(logprobs_H, dtype=np.float64), heads_R))
    if (segment_sums(counts_F, tails_R) > spec.draws).any():
        raise ValueError(f"a row has more than {spec.draws} draws")
    return (
        _ids(_joined(parts, "ids_E"), spec)
        | _counts(spec, head_counts=heads_R, tail_counts=tails_R, draw_counts=counts_F)
        | {"mass": mass_R, "entry_logprobs": encode_logprobs(logprobs_H, spec.logprobs)}
    )


def _counts(spec: CaptureSpec, **counts: np.ndarray) -> dict[str, np.ndarray]:
    dtype = np.uint8 if spec.draws + spec.head_size < 256 else np.uint16
    for name, values in counts.items():
        lowest = 1 if name == "draw_counts" else 0
        if len(values) and (values.min() < lowest or values.max() > np.iinfo(dtype).max):
            raise ValueError(f"{name} must be {lowest} … {np.iinfo(dtype).max}")
    return {name: values.astype(dtype) for name, values in counts.items()}


def segment_sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums of consecutive segments of `values`; a segment of length 0 sums to 0."""
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    running = np.concatenate([[0], np.cumsum(values)])
    sums: np.ndarray = running[bounds[1:]] - running[bounds[:-1]]
    return sums


@dataclass(frozen=True)
class EncodedRows:
    """Stored rows as they lie in the shard, R rows of one or more records. They travel so and are decoded late.

    `columns` are those of `schema.columns` per row, entry, head and tail; uint16 as int16 of the same bits (torch
    cannot concatenate uint16), packed fields of flat entries unpacked to a byte each.
    """

    spec: CaptureSpec
    columns: dict[str, torch.Tensor]

    @staticmethod
    def concatenate(parts: list[EncodedRows]) -> EncodedRows:
        """Rows of several records of one cache, one after the other."""
        names = parts[0].columns
        return EncodedRows(parts[0].spec, {name: torch.cat([part.columns[name] for part in parts]) for name in names})

    def __len__(self) -> int:
        return len(self.columns["chunk_ends" if self.spec.kind == "chunks" else "actual_logprobs"])

    def to(self, device: torch.device) -> EncodedRows:
        """The same on another device."""
        return EncodedRows(self.spec, {name: column.to(device) for name, column in self.columns.items()})

    @property
    def mass_R(self) -> torch.Tensor:
        """float32 [R]: the probabilities that the decoded entries sum to: `top_k` 1 less the tail, otherwise 1."""
        if self.spec.kind == "top_k":
            return self.columns["mass"]
        return torch.ones(len(self), device=self._device)

    @property
    def actual_logprobs_R(self) -> torch.Tensor:
        """float32 [R]: log-probability of the token that follows; NaN for `chunks`, where only chunks have one."""
        return self._per_row("actual_logprobs")

    @property
    def entropy_R(self) -> torch.Tensor:
        """float32 [R]: entropy of the full distribution in nats; NaN where the engine could not tell."""
        return self._per_row("entropies")

    @property
    def chunk_ends_R(self) -> torch.Tensor:
        """Bool [R], see `types.ChunkRows`: with the teacher's own tokens each is a chunk of its own."""
        if self.spec.kind == "chunks":
            return self.columns["chunk_ends"].bool()
        return torch.ones(len(self), dtype=torch.bool, device=self._device)

    @property
    def chunk_logprobs_E(self) -> torch.Tensor:
        """float32 [E], see `types.ChunkRows`."""
        return self.columns["chunk_logprobs"] if self.spec.kind == "chunks" else self.actual_logprobs_R

    @property
    def head_counts_R(self) -> torch.Tensor | None:
        """int64 [R]: how many of the decoded entries are the exact head; None but for `head_tail`."""
        return _integers(self.columns["head_counts"]) if self.spec.kind == "head_tail" else None

    @property
    def logsumexp_RJ(self) -> torch.Tensor:
        """float32 [R, J]: log Σ_v exp(logprob_v/τ) for each of `spec.temperatures`."""
        return self.columns.get("logsumexps", torch.zeros(len(self), 0, device=self._device))

    @property
    def _device(self) -> torch.device:
        return next(iter(self.columns.values())).device

    def _per_row(self, name: str) -> torch.Tensor:
        if name in self.columns:
            return self.columns[name].float()
        return torch.full((len(self),), torch.nan, device=self._device)

    def decode(self, vocabulary_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Kept ids int64 [R, K] and log-probabilities float32 [R, K], whose probabilities sum to `mass_R`.

        `top_k`: K of the spec, most likely first. The sampled kinds: K is the longest row's; shorter rows are filled up
        with their own first id at log-probability -inf, so that gathering is safe and the filling weighs nothing.
        `chunks`: K is 0.
        """
        if self.spec.kind == "chunks":
            nothing = torch.zeros(len(self), 0, device=self._device)
            return nothing.long(), nothing
        if self.spec.kind == "top_k":
            columns, k, format = self.columns, self.spec.top_k, self.spec.logprobs
            high = columns.get("entry_ids_high", columns["entry_ids_low"])
            ids_RK = decode_ids(columns["entry_ids_low"], high, vocabulary_size)
            return ids_RK, decode_logprobs(columns["entry_logprobs"], columns["mass"], format, k)
        return self._decode_ragged(vocabulary_size)

    def _decode_ragged(self, vocabulary_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        low_E = self.columns["entry_ids_low"]
        ids_E = low_E.view(torch.uint16).to(torch.int64)
        if "entry_ids_high" in self.columns:
            ids_E += self.columns["entry_ids_high"].to(torch.int64) << 16
        draws = _integers(self.columns["draw_counts"])
        if self.spec.kind == "sampled":
            entries_R = _integers(self.columns["entry_counts"])
            logprobs_E = (draws.float() / self.spec.draws).log_()
        else:
            heads_R, tails_R = _integers(self.columns["head_counts"]), _integers(self.columns["tail_counts"])
            entries_R = heads_R + tails_R
            logprobs_E = self._head_tail_logprobs(heads_R, tails_R, draws)
        rows, width = len(entries_R), int(entries_R.max()) if len(entries_R) else 0
        starts_R = entries_R.cumsum(0) - entries_R
        row_E = torch.repeat_interleave(entries_R)
        slot_E = row_E * width + torch.arange(len(ids_E), device=ids_E.device) - starts_R[row_E]
        ids_RK = ids_E[starts_R].unsqueeze(1).repeat(1, width)
        ids_RK.view(-1)[slot_E] = ids_E
        logprobs_RK = torch.full((rows, width), -torch.inf, device=ids_E.device)
        logprobs_RK.view(-1)[slot_E] = logprobs_E
        return ids_RK, logprobs_RK

    def _head_tail_logprobs(self, heads_R: torch.Tensor, tails_R: torch.Tensor, draws_F: torch.Tensor) -> torch.Tensor:
        """float32 [E], row after row, head before tail."""
        head_row_H, tail_row_F = torch.repeat_interleave(heads_R), torch.repeat_interleave(tails_R)
        logprobs_H, probabilities_H = dequantise(self.columns["entry_logprobs"], self.spec.logprobs)
        stored_R = torch.zeros(len(heads_R), device=logprobs_H.device).index_add_(0, head_row_H, probabilities_H)
        # A row without draws is all head: its entries sum to 1.
        mass_R = torch.where(tails_R > 0, self.columns["mass"], 1.0)
        total_R = torch.zeros(len(heads_R), device=logprobs_H.device).index_add_(0, tail_row_F, draws_F.float())
        rest_R = (1 - mass_R).clamp_(min=torch.finfo(torch.float32).tiny)
        logprobs_H += (mass_R / stored_R).log_()[head_row_H]
        logprobs_F = (draws_F.float() * (rest_R / total_R)[tail_row_F]).log_()
        # A stable sort by row brings each row's head before its tail.
        order = torch.argsort(torch.cat([head_row_H, tail_row_F]), stable=True)
        return torch.cat([logprobs_H, logprobs_F])[order]


def _integers(stored: torch.Tensor) -> torch.Tensor:
    return (stored.view(torch.uint16) if stored.dtype == torch.int16 else stored).to(torch.int64)
