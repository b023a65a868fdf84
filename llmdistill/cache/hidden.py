"""Sidecar shards: hidden states of chosen layers at the rows' positions, one file beside each shard.

A sidecar `hidden/NAME` belongs to the shard `shards/NAME`, holds the same records in the same order and the same rows.
It is a safetensors file with `keys` uint8 [S, 16], `row_offsets` int64 [S + 1] and for each layer l `hidden.l` [R, D]:
bfloat16, or int8 with `scales.l` float32 [R]: value = int8 · scale. int8 errs by at most scale/2 = max|row|/254.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llmdistill.cache.schema import FORMAT, VERSION
from llmdistill.cache.shard_file import ShardFile, damaged
from llmdistill.cache.storage import open_storage
from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec, Record


def hidden_folder(shards: Path | str) -> Path | str:
    """Where the sidecars of a folder of shards lie."""
    return f"{shards.rstrip('/').rsplit('/', 1)[0]}/hidden" if isinstance(shards, str) else shards.parent / "hidden"


def quantise(hidden_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [R, D] and float32 [R] scales with |hidden - int8 · scale| ≤ scale/2."""
    scales_R = hidden_RD.abs().amax(dim=1) / 127
    safe_R = torch.where(scales_R > 0, scales_R, 1.0)
    return (hidden_RD / safe_R.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scales_R


def write_sidecar(shards: Path | str, name: str, records: Sequence[Record], spec: CaptureSpec) -> None:
    """Write the hidden states of a shard's records.

    Args:
        shards: folder of the shards.
        name: of the shard.
        records: of the shard, in its order, each with `hidden_LRD`.
        spec: with `hidden_layers` and `hidden_format`.

    Raises:
        ValueError: hidden states are missing, of another number of layers or rows, or not finite.
        DataError: the file system refuses.
    """
    states = [record.hidden_LRD for record in records]
    rows = [int(record.supervised_N.sum()) for record in records]
    for count, state in zip(rows, states, strict=True):
        if state is None or state.ndim != 3 or state.shape[:2] != (len(spec.hidden_layers), count):
            raise ValueError(f"hidden states must be [{len(spec.hidden_layers)} layers, {count} rows, width]")
        if not np.isfinite(state).all():
            raise ValueError("a hidden state is not finite")
    every_LRD = torch.from_numpy(np.concatenate([state for state in states if state is not None], axis=1))
    tensors: dict[str, torch.Tensor] = {}
    for layer, hidden_RD in zip(spec.hidden_layers, every_LRD.float(), strict=True):
        if spec.hidden_format == "int8":
            tensors[f"hidden.{layer}"], tensors[f"scales.{layer}"] = quantise(hidden_RD)
        else:
            tensors[f"hidden.{layer}"] = hidden_RD.to(torch.bfloat16)
    put_sidecar(shards, name, [record.key for record in records], rows, tensors)


def put_sidecar(
    shards: Path | str, name: str, keys: Sequence[bytes], rows: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Commit encoded hidden states; `rows` counts those of each record."""
    stored = {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "row_offsets": torch.tensor([0, *np.cumsum(rows).tolist()], dtype=torch.int64),
        **{key: tensor.contiguous() for key, tensor in tensors.items()},
    }
    metadata = {"format": f"{FORMAT}-hidden", "version": VERSION, "checksum": _checksum(stored)}
    open_storage(hidden_folder(shards)).put(name, save(stored, metadata))


class SidecarFile:
    """An open sidecar.

    Raises:
        DataError: it is missing, cut, or not a sidecar of this version.
    """

    def __init__(self, shards: Path | str, name: str) -> None:
        self.path = open_storage(hidden_folder(shards)).local(name)
        try:
            opened: Any = safe_open(str(self.path), framework="pt")
            self._file = opened
            self._metadata = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise damaged(f"the sidecar cannot be read: {error}", self.path) from None
        if self._metadata.get("format") != f"{FORMAT}-hidden" or self._metadata.get("version") != VERSION:
            raise damaged(f"this is not a sidecar of version {VERSION}", self.path)
        self.row_offsets: np.ndarray = self._file.get_tensor("row_offsets").numpy()
        self.tensor_names: list[str] = [
            key for key in list(self._file.keys()) if key.partition(".")[0] in ("hidden", "scales")
        ]

    def stored(self, position: int) -> dict[str, torch.Tensor]:
        """A record's part of every tensor, as stored."""
        rows = slice(int(self.row_offsets[position]), int(self.row_offsets[position + 1]))
        return {key: self._file.get_slice(key)[rows] for key in self.tensor_names}

    def read(self, position: int) -> dict[int, torch.Tensor]:
        """Hidden states of a record by layer: float32 [R, D], or bfloat16 as stored."""
        parts = self.stored(position)
        found = {}
        for key, part in parts.items():
            kind, _, layer = key.partition(".")
            if kind == "hidden":
                scales_R = parts.get(f"scales.{layer}")
                found[int(layer)] = part if scales_R is None else part.float() * scales_R.unsqueeze(1)
        return found

    def faults(self, shard: ShardFile) -> list[str]:
        """What is wrong with the contents, in words."""
        stored = {key: self._file.get_tensor(key) for key in list(self._file.keys())}
        if _checksum(stored) != self._metadata.get("checksum"):
            return ["the sidecar's checksum differs"]
        if not np.array_equal(stored["keys"].numpy(), shard.stored("keys")):
            return ["the sidecar holds other records"]
        if not np.array_equal(self.row_offsets, shard.offsets["row_offsets"]):
            return ["the sidecar holds other rows"]
        if {int(key.split(".")[1]) for key in self.tensor_names} != set(shard.spec.hidden_layers):
            return ["the sidecar holds other layers"]
        return []


def sidecar_faults(cache: Path | str, name: str, shard: ShardFile) -> list[str]:
    """What is wrong with the sidecar of a shard, in words."""
    from llmdistill.cache.index import shard_folder

    try:
        return SidecarFile(shard_folder(cache), name).faults(shard)
    except DataError as error:
        return [error.what]


def _checksum(stored: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(stored):
        tensor = stored[key].contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
