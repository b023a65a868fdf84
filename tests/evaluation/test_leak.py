"""Held-out records share no prompt with training, whatever is planted in the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmdistill.cache.index import shard_folder
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.requests import make_requests
from llmdistill.types import CaptureSpec, Record, TopKRows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_duplicates_in_the_corpus_fall_on_one_side(mode: str, tokenizer, tmp_path: Path) -> None:
    rows = []
    for n in range(80):
        prompt = [user(f"Tell me about {n}.")]
        if mode == "generate":
            rows += [{"messages": prompt}] * (1 + n % 3)  # the same line again
        else:
            rows += [
                {"messages": [*prompt, {"role": "assistant", "content": f"Answer {a} to {n}."}]}
                for a in range(1 + n % 3)
            ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = PromptsConfig.model_validate({"sources": [{"path": str(path)}], "mode": mode})
    teacher = TeacherConfig.model_validate({"model": "m", "sampling": {"samples": 3}})
    spec = CaptureSpec(mode, "top_k", 1, len(tokenizer), "t", "k", "fake", "float32", {})
    requests = make_requests(read_prompts(prompts), tokenizer, prompts, {"teacher": (teacher, spec)}).requests
    assert len(requests) > 140, "several records for many of the prompts"

    records, prompt_of = [], {}
    for request in requests:
        ids = np.array([*request.token_ids, 2], np.int32)
        supervised = np.array([*(request.supervised or [False] * len(request.token_ids)), True])
        count = int(supervised.sum())
        kept = TopKRows(np.zeros((count, 1), np.int32), np.full((count, 1), -1.0, np.float32), np.full(count, -1.0))
        records.append(Record(request.key, ids, supervised, kept, "stop", request.split))
        prompt_of[request.key] = tuple(ids[: int(supervised.argmax())])
    write_shard(shard_folder(tmp_path / "cache"), records, spec, "fake-1")
    reader = CacheReader(tmp_path / "cache")
    training, held_out = reader.split(0.25)
    assert len(training) and len(held_out)
    sides = [{prompt_of[reader.keys[number]] for number in side} for side in (training.tolist(), held_out.tolist())]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 80
