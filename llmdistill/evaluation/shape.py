"""The shapes of teacher and student, and which of the teacher's layers the student started from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "num_experts",
    "tie_word_embeddings",
)
_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)$")


def model_shape(folder: Path) -> dict[str, Any]:
    """Type and sizes of a model folder, as its config.json names them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"model_type": config.get("model_type")} | {name: config[name] for name in _SIZES if name in config}


def layers_from(untrained: Path, teacher: Path) -> list[int] | None:
    """For each layer of the untrained student, the teacher's layer with the same weights.

    Compared is the smallest matrix of each layer, which is all that has to be read of a large teacher.

    Returns:
        None where a layer has no equal: the student was not made of whole layers.

    """
    student, original = _layer_digests(untrained), _layer_digests(teacher)
    numbers = {digest: number for number, digest in original.items()}
    found = [numbers.get(student[number]) for number in sorted(student)]
    return [number for number in found if number is not None] if found and None not in found else None


def _layer_digests(folder: Path) -> dict[int, bytes]:
    smallest: dict[int, tuple[int, str, Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found = _LAYER.search(name)
                shape = tensors.get_slice(name).get_shape()
                if found and len(shape) == 2:
                    size = (shape[0] * shape[1], found[2], file)
                    number = int(found[1])
                    smallest[number] = min(smallest.get(number, size), size)
    return {number: _digest(file, number, name) for number, (_, name, file) in smallest.items()}


def _digest(file: Path, number: int, name: str) -> bytes:
    with safe_open(file, framework="pt") as tensors:
        full = next(key for key in tensors.keys() if key.endswith(f".layers.{number}.{name}"))  # noqa: SIM118
        values = tensors.get_tensor(full)
    return hashlib.blake2b(values.float().numpy().tobytes() + str(tuple(values.shape)).encode()).digest()
