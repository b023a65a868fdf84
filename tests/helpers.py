"""Small makers of records and caches for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.shard import write_shard
from llmdistill.types import CaptureSpec, Record, TopKRows, student_source

SPEC = CaptureSpec("generate", "top_k", 8, 1000, "teacher", "tokenizer", "fake", "float32", {"temperature": 1.0})


def make_record(
    number: int, *, k: int = 8, vocabulary_size: int = 1000, tokens: int = 20, prompt: int = 6, source: str = ""
) -> Record:
    """A record with random logits, the same for the same arguments."""
    generator = np.random.default_rng(number)
    token_ids = generator.integers(0, vocabulary_size, tokens).astype(np.int32)
    logits = generator.normal(0, 3, (tokens - prompt, vocabulary_size))
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    rows = TopKRows(
        ids,
        np.take_along_axis(logprobs, ids, axis=1).astype(np.float32),
        np.take_along_axis(logprobs, token_ids[prompt:, None].astype(int), axis=1)[:, 0].astype(np.float32),
    )
    key = int(generator.integers(1 << 62)).to_bytes(16, "little")
    return Record(
        key,
        token_ids,
        np.arange(tokens) >= prompt,
        rows,
        "stop",
        split=int(generator.integers(0, 2**64, dtype=np.uint64)),
        source=source,
    )


def make_cache(
    folder: Path, records: int = 12, shard: int = 5, spec: CaptureSpec = SPEC, by_student: int = 0, **options: int
) -> list[Record]:
    """A cache of `records` random records, the first `by_student` of them the student's; returns them."""
    made = [
        make_record(
            number,
            k=spec.top_k,
            vocabulary_size=spec.vocabulary_size,
            source=student_source(7) if number < by_student else "",
            **options,
        )
        for number in range(records)
    ]
    for start in range(0, records, shard):
        write_shard(shard_folder(folder), made[start : start + shard], spec, "fake-1")
    write_index(folder)
    return made


def save_random_llama(folder: Path, **config: Any) -> Path:
    """A LLaMA with large random weights in bfloat16, the same for the same arguments; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**config, initializer_range=0.2)).to(torch.bfloat16).save_pretrained(str(folder))
    return folder
