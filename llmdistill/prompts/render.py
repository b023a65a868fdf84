"""From conversations and texts to token ids, once: what is made here is stored and never made again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import PromptRow, RejectedRow
from llmdistill.prompts.keys import record_key, sampling_seed, spec_fingerprint, split_hash
from llmdistill.types import CaptureSpec, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """The token ids of one row."""

    token_ids: list[int]
    prompt_length: int
    """Tokens that come before the first supervised one; all of them, in `generate` mode."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        DataError: there is none, or no fast one.

    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer could be loaded: {error}", where=str(folder)) from None
    if not tokenizer.is_fast:
        raise DataError("the tokenizer has no tokenizer.json", where=str(folder), fix="save it as a fast tokenizer")
    return tokenizer


def make_requests(
    rows: Iterable[PromptRow | RejectedRow],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptsConfig,
    teacher: TeacherConfig,
    spec: CaptureSpec,
) -> tuple[list[Request], list[RejectedRow]]:
    """Token ids and keys of all rows, in order.

    Returns:
        the requests, and the rows that make none: unreadable, too long, or equal to an earlier one.

    Raises:
        DataError: no row makes a request.

    """
    common = spec_fingerprint(spec)
    requests: dict[bytes, Request] = {}
    rejected = []
    for row in rows:
        try:
            if isinstance(row, RejectedRow):
                raise ValueError(row.reason)
            rendered = _render(row, tokenizer, prompts.mode)
            for request in _requests_of(rendered, row.source, prompts, teacher, common):
                earlier = requests.setdefault(request.key, request)
                if earlier is not request:
                    raise ValueError(f"the same prompt as {earlier.source}")
        except ValueError as error:
            rejected.append(RejectedRow(row.source, str(error)))
    if not requests:
        example = f"; the first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
        raise DataError(f"none of the {len(rejected)} rows of the prompt files can be used{example}")
    return list(requests.values()), rejected


def _render(row: PromptRow, tokenizer: PreTrainedTokenizerBase, mode: str) -> Rendered:
    if mode == "generate":
        if row.messages is None:
            return _generation_prompt([{"role": "user", "content": str(row.text)}], tokenizer)
        if row.messages[-1]["role"] == "assistant":
            raise ValueError("the conversation ends with an assistant message; there is nothing to answer")
        return _generation_prompt(list(row.messages), tokenizer)
    if row.messages is None:
        token_ids = tokenizer(row.text)["input_ids"]
        if len(token_ids) < 2:
            raise ValueError("the text has fewer than two tokens")
        return Rendered(token_ids, prompt_length=1)
    if row.messages[-1]["role"] != "assistant":
        raise ValueError("the conversation must end with an assistant message in score mode")
    return _with_response(list(row.messages), tokenizer)


def _generation_prompt(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    token_ids = _apply_template(messages, tokenizer, add_generation_prompt=True)
    return Rendered(token_ids, prompt_length=len(token_ids))


def _with_response(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    prompt = _apply_template(messages[:-1], tokenizer, add_generation_prompt=True)
    whole = _apply_template(messages, tokenizer, add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise ValueError("the chat template renders the prompt differently once the response follows")
    # A template may write more after the end token (a line break); the teacher stops at the end token.
    ends = [i for i, token in enumerate(whole) if i >= len(prompt) and token == tokenizer.eos_token_id]
    return Rendered(whole[: ends[0] + 1] if ends else whole, prompt_length=len(prompt))


def _apply_template(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError("the teacher's tokenizer has no chat template", fix="use rows with `text` and mode: score")
    try:
        return list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from None


def _requests_of(
    rendered: Rendered, source: str, prompts: PromptsConfig, teacher: TeacherConfig, common: bytes
) -> Iterable[Request]:
    token_ids = rendered.token_ids
    generate = prompts.mode == "generate"
    length = len(token_ids) + (teacher.sampling.max_new_tokens if generate else 1)
    if length > teacher.max_model_len:
        raise ValueError(
            f"too long: {len(token_ids)} tokens and {length - len(token_ids)} new ones are more than"
            f" teacher.max_model_len {teacher.max_model_len}"
        )
    split = split_hash(token_ids[: rendered.prompt_length] if rendered.prompt_length > 1 else token_ids)
    if not generate:
        supervised = tuple(i >= rendered.prompt_length for i in range(len(token_ids)))
        key = record_key(common, token_ids, supervised=supervised)
        return [Request(key, tuple(token_ids), source, supervised=supervised, split=split)]
    seeds = [sampling_seed(teacher.sampling.seed, token_ids, sample) for sample in range(teacher.sampling.samples)]
    return [Request(record_key(common, token_ids, seed), tuple(token_ids), source, seed, split=split) for seed in seeds]
