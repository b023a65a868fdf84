"""Tokenizers with the chat templates of the families that models have, and makers of rows, files and requests."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.prompts.requests import Corpus, make_requests
from llmdistill.prompts.shapes import PromptRow
from llmdistill.types import CaptureSpec

SPEC = CaptureSpec("generate", "top_k", 64, 49152, "t", "k", "vllm", "bfloat16", {})

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITES_BOS = "{{ bos_token }}" + CHATML
MARKS_GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
IGNORES_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TAKES_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITES_DATE = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML


@functools.cache
def make_tokenizer(template: str | None = CHATML, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some hundred tokens, with `<s>`, `<|im_start|>` and `<|im_end|>` (the end)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<s>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is the capital of France? Paris. user system assistant\n\n"] * 9, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>")
    made.chat_template = template
    return made


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def chat(*messages: dict[str, Any], source: str = "a:1", **more: Any) -> PromptRow:
    return PromptRow(source, messages=tuple(messages), **more)


def make(rows: Any, tokenizer: Any, mode: str = "generate", spec: CaptureSpec = SPEC, **sections: Any) -> Corpus:
    """Requests of rows; keys of `prompts:` and of `teacher:` may be given by name."""
    teacher = {key: value for key, value in sections.items() if key in TeacherConfig.model_fields}
    prompts = {key: value for key, value in sections.items() if key not in teacher}
    config = PromptsConfig.model_validate({"sources": [{"path": "x"}], "mode": mode, **prompts})
    asked = {"teacher": (TeacherConfig.model_validate({"model": "x", **teacher}), spec)}
    return make_requests(rows, tokenizer, config, asked)


def read(path: Path | str, prompts: dict[str, Any] | None = None, **source: Any) -> list[PromptRow | RejectedRow]:
    """All rows of a source."""
    config = {"sources": [{"path": str(path), **source}], **(prompts or {})}
    return list(read_prompts(PromptsConfig.model_validate(config)))


def usable(rows: list[PromptRow | RejectedRow]) -> list[PromptRow]:
    return [row for row in rows if isinstance(row, PromptRow)]


def rejected(rows: list[PromptRow | RejectedRow]) -> list[RejectedRow]:
    return [row for row in rows if isinstance(row, RejectedRow)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
