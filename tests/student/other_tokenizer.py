"""A student's tokenizer that is not the teacher's, and a cache of what a teacher might have said."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.shard import write_shard
from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.keys import tokenizer_fingerprint
from llmdistill.prompts.requests import Corpus, make_requests
from llmdistill.prompts.shapes import PromptRow
from llmdistill.types import CaptureSpec, Record, Request, TopKRows

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@functools.cache
def other_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with other tokens, another end token and another template than `make_tokenizer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(text, special=True) for text in ("<pad>", "</s>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["[user] [assistant] The capital of Spain is Madrid, of Greece Athens."] * 9, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE
    return made


def teacher_spec(tokenizer: Any, mode: str = "generate") -> CaptureSpec:
    """Of the cache that `save_answers` writes."""
    return CaptureSpec(mode, "top_k", 4, len(tokenizer), "teacher", tokenizer_fingerprint(tokenizer), "fake", "float32")


def requests_of(rows: Sequence[PromptRow], tokenizer: Any, prompts: PromptsConfig) -> Corpus:
    """What a teacher is asked."""
    teacher = TeacherConfig.model_validate({"model": "x", "max_model_len": 200, "sampling": {"max_new_tokens": 50}})
    asked = {"teacher": (teacher, teacher_spec(tokenizer, prompts.mode))}
    return make_requests(rows, tokenizer, prompts, asked, with_origins=True)


def answered(request: Request, response: Sequence[int], reason: str) -> Record:
    """A record with a response, or of a scored sequence; log-probabilities are -1, -2, … -7, and again."""
    token_ids = np.array([*request.token_ids, *response], np.int32)
    supervised = np.arange(len(token_ids)) >= len(request.token_ids)
    if request.supervised is not None:
        supervised = np.array(request.supervised)
    count = int(supervised.sum())
    rows = TopKRows(
        np.tile(np.arange(4, dtype=np.int32), (count, 1)),
        np.full((count, 4), np.log(0.2), np.float32),
        -(np.arange(count) % 7 + 1).astype(np.float32),
    )
    return Record(request.key, token_ids, supervised, rows, reason, request.split)


def save_answers(cache: Path, records: Sequence[Record], spec: CaptureSpec, shard: int = 2) -> None:
    """A cache of these records."""
    for start in range(0, len(records), shard):
        write_shard(shard_folder(cache), records[start : start + shard], spec, "fake-1")
    write_index(cache)
