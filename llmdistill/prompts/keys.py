"""Content addresses: fingerprints of models and tokenizers, keys of records, the held-out split.

All are blake2b hashes. A record's key covers what was asked (token ids, and the seed or the supervised tokens) and who
was asked for what (the capture spec); nothing about order, batches or machines goes in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.errors import DataError
from llmdistill.types import RECORD_KEY_BYTES, CaptureSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 1 << 16
_BLOCKS_PER_FILE = 64


def model_fingerprint(folder: Path) -> str:
    """Fingerprint of a model folder: config.json in full; of each weight file its size, its safetensors header and up
    to 64 blocks of 64 KiB spread over it (a teacher of hundreds of GB is fingerprinted in a second).

    Raises:
        DataError: the folder holds no config or no safetensors weights.

    """
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise DataError(
            "not a model folder: it needs config.json and *.safetensors",
            where=str(folder),
            fix="convert the model with save_pretrained of transformers",
        )
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(8 + int.from_bytes(stream.read(8), "little")))
            for offset in np.linspace(0, max(size - _BLOCK, 0), _BLOCKS_PER_FILE).astype(int):
                stream.seek(int(offset))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def served_fingerprint(folder: Path, name: str) -> str:
    """Fingerprint of a model behind a server: its config.json and the server's name for it; the weights are not seen.

    Raises:
        DataError: the folder holds no config.

    """
    if not (folder / "config.json").is_file():
        raise DataError("not a model folder: it needs config.json", where=str(folder))
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16)
    digest.update(name.encode())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of everything that decides token ids: vocabulary, merges, added tokens and the chat template."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps(tokenizer.chat_template).encode())
    return digest.hexdigest()


def id_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """The first difference of two maps from tokens to ids, in words; empty where they are equal."""
    differing = {token for token, number in (ours.items() ^ theirs.items())}
    if not differing:
        return ""
    ids = {token: ours.get(token, theirs.get(token, 0)) for token in differing}
    first = min(differing, key=lambda token: (ids[token], token))
    said = [f"has the id {known[first]}" if first in known else "does not exist" for known in (ours, theirs)]
    return f"{len(differing):,} tokens differ, the first is {first!r}: it {said[0]} there and {said[1]} here"


def spec_fingerprint(spec: CaptureSpec) -> bytes:
    """Hash of a capture spec, the common part of its records' keys."""
    return hashlib.blake2b(json.dumps(spec.facts(), sort_keys=True).encode(), digest_size=16).digest()


def record_key(
    spec: bytes, token_ids: Sequence[int], seed: int | None = None, supervised: Sequence[bool] | None = None
) -> bytes:
    """Key of a record.

    Args:
        spec: `spec_fingerprint` of the capture.
        token_ids: the prompt (`generate`) or the whole sequence (`score`).
        seed: sampling seed, in `generate` mode.
        supervised: a flag per token, in `score` mode.

    """
    digest = hashlib.blake2b(spec, digest_size=RECORD_KEY_BYTES)
    digest.update(np.asarray(token_ids, dtype="<u4").tobytes())
    digest.update(b"" if seed is None else seed.to_bytes(8, "little"))
    digest.update(b"" if supervised is None else np.packbits(np.asarray(supervised, dtype=bool)).tobytes())
    return digest.digest()


def derived_key(spec: bytes, source_key: bytes) -> bytes:
    """Key of a record that was made from another one.

    Args:
        spec: `spec_fingerprint` of the capture that it belongs to.
        source_key: of the record that it was made from.

    """
    return hashlib.blake2b(spec + source_key, digest_size=RECORD_KEY_BYTES).digest()


def split_hash(prompt_ids: Sequence[int]) -> int:
    """Hash of a prompt, 0 … 2^64-1, the same for every sample and every teacher."""
    digest = hashlib.blake2b(np.asarray(prompt_ids, dtype="<u4").tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def sampling_seed(seed: int, prompt_ids: Sequence[int], sample: int) -> int:
    """Seed of one request, 0 … 2^63-1."""
    digest = hashlib.blake2b(f"{seed}:{sample}:".encode(), digest_size=8)
    digest.update(np.asarray(prompt_ids, dtype="<u4").tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1
