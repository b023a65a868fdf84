"""Reading records back: compressed slices of memory-mapped shards, decoded on the device that needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from llmdistill.cache.codec import decode_ids, decode_logprobs
from llmdistill.cache.index import require_same_spec, shard_paths
from llmdistill.cache.shard import read_spec
from llmdistill.errors import DataError
from llmdistill.types import FINISH_REASONS, CaptureSpec


@dataclass(frozen=True)
class EncodedRows:
    """Stored rows as they lie in the shard, R rows of one or more records; they travel so and are decoded late."""

    ids_low_RK: torch.Tensor
    ids_high: torch.Tensor
    codes_RK: torch.Tensor
    mass_R: torch.Tensor
    actual_logprobs_R: torch.Tensor

    @staticmethod
    def concatenate(parts: list[EncodedRows]) -> EncodedRows:
        """Rows of several records, one after the other."""
        return EncodedRows(
            *(torch.cat([getattr(part, name) for part in parts]) for name in EncodedRows.__dataclass_fields__)
        )

    def to(self, device: torch.device) -> EncodedRows:
        """The same on another device."""
        return EncodedRows(*(getattr(self, name).to(device) for name in EncodedRows.__dataclass_fields__))

    def decode(self, vocabulary_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Kept ids int64 [R, K] and log-probabilities float32 [R, K], whose probabilities sum to `mass_R`."""
        ids_RK = decode_ids(self.ids_low_RK.view(torch.uint16), self.ids_high, vocabulary_size)
        return ids_RK, decode_logprobs(self.codes_RK, self.mass_R)


@dataclass(frozen=True)
class StoredRecord:
    """One record, its rows still encoded."""

    key: bytes
    token_ids_N: torch.Tensor
    """int64 [N]."""
    supervised_N: torch.Tensor
    """bool [N], see `types.Record`."""
    rows: EncodedRows
    finish_reason: str


class CacheReader:
    """Random access to the records of a cache, in the order of their keys.

    The order of keys depends neither on who wrote which shard nor on when, so "record 17" is the same record after a
    crash, with another number of replicas, or in a copy.

    Args:
        cache: folder of the cache.

    Raises:
        DataError: no shards, damaged ones, or shards of different captures.

    """

    def __init__(self, cache: Path) -> None:
        paths = shard_paths(cache)
        if not paths:
            raise DataError("the cache holds no shard", where=str(cache), fix="run `llmdistill generate` first")
        self.spec: CaptureSpec = read_spec(paths[0])
        self._shards: list[Any] = []
        small: dict[str, list[np.ndarray]] = {
            name: [] for name in ("keys", "splits", "finish_reasons", "lengths", "at")
        }
        self._offsets: list[tuple[np.ndarray, np.ndarray]] = []
        for number, path in enumerate(paths):
            require_same_spec(read_spec(path), self.spec, path)
            shard = safe_open(str(path), framework="pt")
            self._shards.append(shard)
            tokens, rows = shard.get_tensor("token_offsets").numpy(), shard.get_tensor("row_offsets").numpy()
            self._offsets.append((tokens, rows))
            for name in ("keys", "splits", "finish_reasons"):
                small[name].append(shard.get_tensor(name).numpy())
            small["lengths"].append(np.stack([np.diff(tokens), np.diff(rows)], axis=1))
            small["at"].append(np.stack([np.full(len(tokens) - 1, number), np.arange(len(tokens) - 1)], axis=1))
        keys = np.concatenate(small["keys"])
        order = np.lexsort(keys.T[::-1])
        self.keys: list[bytes] = [bytes(key) for key in keys[order]]
        """Record keys, ascending."""
        self.splits: np.ndarray = np.concatenate(small["splits"])[order]
        """uint64 [S]: hashes of the prompts."""
        lengths = np.concatenate(small["lengths"])[order]
        self.token_counts: np.ndarray = lengths[:, 0]
        """int64 [S]: tokens of each record."""
        self.row_counts: np.ndarray = lengths[:, 1]
        """int64 [S]: supervised rows of each record."""
        self._finish_reasons = np.concatenate(small["finish_reasons"])[order]
        self._at = np.concatenate(small["at"])[order]

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training records and of the held-out ones, for a held-out share 0 ≤ `held_out` < 1."""
        is_held_out = self.splits < np.uint64(min(int(held_out * 2**64), 2**64 - 1))
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)

    def read(self, number: int) -> StoredRecord:
        """Record `number`, 0 … len - 1."""
        shard_number, position = self._at[number]
        shard = self._shards[shard_number]
        tokens, rows = self._offsets[shard_number]
        token_slice = slice(int(tokens[position]), int(tokens[position + 1]))
        row_slice = slice(int(rows[position]), int(rows[position + 1]))

        def cut(name: str, where: slice) -> torch.Tensor:
            tensor: torch.Tensor = shard.get_slice(name)[where]
            return tensor

        token_ids = decode_ids(
            cut("token_ids_low", token_slice).unsqueeze(-1),
            cut("token_ids_high", token_slice),
            self.spec.vocabulary_size,
        )
        return StoredRecord(
            key=self.keys[number],
            token_ids_N=token_ids[:, 0],
            supervised_N=cut("supervised", token_slice).bool(),
            rows=EncodedRows(
                # torch has no concatenation of uint16; int16 holds the same bits.
                ids_low_RK=cut("entry_ids_low", row_slice).view(torch.int16),
                ids_high=cut("entry_ids_high", row_slice),
                codes_RK=cut("entry_codes", row_slice),
                mass_R=cut("mass", row_slice),
                actual_logprobs_R=cut("actual_logprobs", row_slice).float(),
            ),
            finish_reason=FINISH_REASONS[int(self._finish_reasons[number])],
        )
