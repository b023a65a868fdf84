"""From conversations and texts to token ids, once: what is made here is stored and never made again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import DataError
from llmdistill.prompts.control_tokens import ESCAPED, ControlTokens
from llmdistill.prompts.rejects import BadRowError
from llmdistill.prompts.shapes import PromptRow
from llmdistill.prompts.template import ChatTemplate, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNUSED_ANSWER = "answers not used"


@dataclass(frozen=True)
class Rendered:
    """The token ids of one record."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...] | None = None
    """`score` mode: a flag per token; the first is False, one at least is True."""

    @property
    def prompt_length(self) -> int:
        """Tokens that come before the first supervised one; all of them, in `generate` mode."""
        return len(self.token_ids) if self.supervised is None else self.supervised.index(True)


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


class Renderer:
    """Rows to token ids, for one tokenizer and one configuration.

    Args:
        tokenizer: the teacher's.
        prompts: the configuration.

    Raises:
        ConfigError: the chat template does not know one of `template_arguments`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: PromptsConfig) -> None:
        self._tokenizer = tokenizer
        self._generate = prompts.mode == "generate"
        self._supervise = prompts.supervise
        self._control = ControlTokens(tokenizer, prompts.control_tokens)
        self._template = ChatTemplate(tokenizer, prompts, self._control.pattern)

    def asked(self, row: PromptRow) -> PromptRow:
        """The part of a row that this mode uses: in `generate` mode a conversation up to its last question.

        Raises:
            BadRowError: there is nothing to answer, or nothing to score.
        """
        if not self._generate:
            if row.messages is not None and row.messages[-1]["role"] != "assistant":
                raise BadRowError("no response: the conversation must end with an assistant message in score mode")
            return row
        if row.messages is None:
            return replace(row, text=None, messages=({"role": "user", "content": row.text},))
        if row.messages[-1]["role"] == "assistant":
            return replace(row, messages=row.messages[:-1], changes=(*row.changes, UNUSED_ANSWER))
        return row

    def render(self, row: PromptRow) -> tuple[list[Rendered], tuple[str, ...]]:
        """The records of a row that `asked` returned, and what was changed to make them.

        There is one, but where `supervise: all` meets a chat template that changes earlier turns (it drops their
        thoughts): then every assistant turn makes a record of its own, with the turns before it as its prompt has them.

        Raises:
            BadRowError: the chat template or the policy for control tokens refuses it, or nothing is supervised.
        """
        (messages, tools, text), mark = self._control.guarded((row.messages, row.tools, row.text))
        changes = (ESCAPED,) if mark else ()
        if messages is None:
            token_ids = self._control.token_ids(text, mark, add_special_tokens=True)
            if len(token_ids) < 2:
                raise BadRowError("too short: the text has fewer than two tokens")
            return [Rendered(tuple(token_ids), (False, *[True] * (len(token_ids) - 1)))], changes
        if self._generate:
            prompt = self._template.text(messages, tools, generation_prompt=True)
            return [Rendered(tuple(self._control.token_ids(prompt, mark)))], changes
        if self._supervise == "all" and (found := self._template.all_spans(messages, tools)) is not None:
            return [self._supervised(*found, mark)], changes
        last = [len(messages) - 1]
        turns = last if self._supervise == "last" else [n for n, m in enumerate(messages) if m["role"] == "assistant"]
        found_turns = (self._template.last_span(messages[: turn + 1], tools) for turn in turns)
        return [self._supervised(text, spans, mark) for text, spans in found_turns], changes

    def continued(self, row: PromptRow, response: str, end_id: int | None) -> Rendered:
        """The record of a prompt that `asked` returned and of a response to it that came as text.

        Args:
            row: the prompt.
            response: what was written; special tokens that it spells are treated as `prompts.control_tokens` says.
            end_id: token that ends it; None where it was cut.

        Raises:
            BadRowError: see `render`; or nothing was written.
        """
        (messages, tools, response), mark = self._control.guarded((row.messages, row.tools, response))
        prompt = self._template.text(messages, tools, generation_prompt=True)
        if response:
            record = self._supervised(prompt + response, [(len(prompt), len(prompt) + len(response))], mark)
        else:
            token_ids = self._control.token_ids(prompt, mark)
            record = Rendered(tuple(token_ids), (False,) * len(token_ids))
        if end_id is None and not response:
            raise BadRowError("no response: the teacher wrote nothing before it was cut")
        assert record.supervised is not None
        end = () if end_id is None else (end_id,)
        return Rendered((*record.token_ids, *end), (*record.supervised, *(True for _ in end)))

    def shortened(self, text: str, tokens: int, side: str) -> str:
        """A text without its first (`left`) or last (`right`) tokens: at least one character less."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]
        if tokens >= len(offsets):
            return ""
        if side == "left":
            return text[max(offsets[tokens][0], 1) :]
        return text[: min(offsets[-tokens - 1][1], len(text) - 1)]

    def starts_with_bos(self, record: Rendered) -> bool:
        """Whether a record's first token is the tokenizer's begin-of-sequence token."""
        return bool(record.token_ids[0] == self._tokenizer.bos_token_id)

    def _supervised(self, text: str, spans: Sequence[Span], mark: str) -> Rendered:
        """Token ids of a rendered conversation up to the last span's end; the spans are supervised."""
        text = text[: spans[-1][1]]
        borders = list(itertools.chain.from_iterable(spans))
        pieces = [self._control.token_ids(text[a:b], mark) for a, b in itertools.pairwise([0, *borders])]
        token_ids = self._control.token_ids(text, mark)
        if token_ids == list(itertools.chain.from_iterable(pieces)):
            positions = list(itertools.accumulate(map(len, pieces)))
        else:
            beginnings = [self._control.token_ids(text[:border], mark) for border in borders]
            positions = [len(beginning) for beginning in beginnings]
            if any(token_ids[: len(beginning)] != beginning for beginning in beginnings):
                # A token would reach over a border. The teacher sees the prompt end there, and so does the record.
                token_ids = list(itertools.chain.from_iterable(pieces))
                positions = list(itertools.accumulate(map(len, pieces)))
        supervised = [False] * len(token_ids)
        for first, end in zip(positions[::2], positions[1::2], strict=True):
            supervised[first:end] = [True] * (end - first)
        if supervised[0] or not any(supervised):
            raise BadRowError("chat template: it renders no prompt, or no response")
        return Rendered(tuple(token_ids), tuple(supervised))
