"""The chat template of a tokenizer, as text: what it renders, and which parts of it are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.dialogue import Message
from llmdistill.prompts.rejects import BadRowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First character of a part of a text, and the one after its last."""


class ChatTemplate:
    """A chat template with its arguments.

    Args:
        tokenizer: owns the template.
        prompts: `template_arguments` and `template_date` are used.
        special: matches the text of every special token.

    Raises:
        ConfigError: the template does not know one of the arguments.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: PromptsConfig, special: re.Pattern[str]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._date = prompts.template_date
        self._arguments = dict(prompts.template_arguments)
        template = str(tokenizer.chat_template or "")
        unknown = [name for name in self._arguments if not re.search(rf"\b{re.escape(name)}\b", template)]
        if unknown:
            raise ConfigError(
                f"the chat template of the teacher has no argument {', '.join(unknown)}",
                where="prompts.template_arguments",
            )
        self._marks_generation = bool(re.search(r"\{%-?\s*generation\s*-?%\}", template))

    def text(self, messages: Sequence[Message], tools: Sequence[Any], generation_prompt: bool) -> str:
        """The rendered conversation, with the header of an assistant's turn at the end if `generation_prompt`.

        Raises:
            BadRowError: the template refuses the conversation, or leaves a part of it out.
            DataError: there is no template.
            ConfigError: the template writes today's date, and no date is given.
        """
        text = self._rendered(messages, tools, generation_prompt)
        if messages[0]["role"] == "system" and messages[0]["content"].strip() not in text:
            other = [{**messages[0], "content": "Another system message"}, *messages[1:]]
            if self._rendered(other, tools, generation_prompt) == text:
                raise BadRowError("chat template: it leaves the system message out")
        if tools and self._rendered(messages, (), generation_prompt) == text:
            raise BadRowError("chat template: it leaves the tools out")
        if any("tool_calls" in message for message in messages):
            without = [{key: item for key, item in message.items() if key != "tool_calls"} for message in messages]
            if self._rendered(without, tools, generation_prompt) == text:
                raise BadRowError("chat template: it leaves the tool calls out")
        return text

    def last_span(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]]:
        """The rendered conversation and, in it, the assistant message that it ends with, header excluded.

        Raises:
            BadRowError: see `text`; or the prompt is rendered differently once the response follows.
        """
        whole = self.text(messages, tools, generation_prompt=False)
        span = self._span(whole, messages, len(messages) - 1, tools)
        if span is None:
            raise BadRowError("chat template: it renders the prompt differently once the response follows")
        return whole, [span]

    def all_spans(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Span]] | None:
        """The rendered conversation and, in it, every assistant message, header excluded.

        They are what the template marks with `{% generation %}`, or else, for each, what lies between the rendering of
        the messages before it (with the header of an answer) and the rendering of the messages up to it.

        Returns:
            None where an earlier rendering is no beginning of the whole: the template changes turns that others follow.

        Raises:
            BadRowError: see `text`.
        """
        whole = self.text(messages, tools, generation_prompt=False)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self._marks_generation:
            marked = [self._with_end_token(whole, span) for span in self._marked(messages, tools)]
            return (whole, marked) if len(marked) == len(turns) else None
        spans = [self._span(whole, messages, turn, tools) for turn in turns]
        return (whole, [span for span in spans if span]) if all(spans) else None

    def _span(self, whole: str, messages: Sequence[Message], turn: int, tools: Sequence[Any]) -> Span | None:
        before = self.text(messages[:turn], tools, generation_prompt=True)
        upto = whole if turn == len(messages) - 1 else self.text(messages[: turn + 1], tools, generation_prompt=False)
        if not (whole.startswith(before) and whole.startswith(upto) and len(before) < len(upto)):
            return None
        start, end = _after_insertion(upto, len(before), messages[turn]), len(upto)
        # A template may write more after the end token (a line break); the teacher stops at the end token.
        ends = [match.end() for match in self._special.finditer(whole, start, end)]
        return start, ends[-1] if ends and not whole[ends[-1] : end].strip() else end

    def _with_end_token(self, whole: str, span: Span) -> Span:
        """A marked part, up to its end token, which templates leave within the mark or outside of it."""
        start, end = span
        ends = [match.end() for match in self._special.finditer(whole, start, end)]
        if ends and not whole[ends[-1] : end].strip():
            return start, ends[-1]
        following = self._special.match(whole, end)
        return start, following.end() if following else end

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[Span]:
        from transformers.utils.chat_template_utils import render_jinja_template

        template: Any = self._tokenizer.get_chat_template(tools=list(tools) or None)
        rendered: Any = render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **self._arguments, "strftime_now": self._strftime_now},
        )
        return [(int(start), int(end)) for start, end in rendered[1][0]]

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Any], generation_prompt: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise DataError("the teacher's tokenizer has no chat template", fix="use rows with `text` and mode: score")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    add_generation_prompt=generation_prompt,
                    tokenize=False,
                    strftime_now=self._strftime_now,
                    **self._arguments,
                )
            )
        except ConfigError:
            raise
        # A template is a program of the model's author: it fails with jinja's errors and with Python's.
        except Exception as error:
            raise BadRowError(f"chat template: it refuses the conversation: {error}") from None

    def _strftime_now(self, form: str) -> str:
        if self._date is None:
            raise ConfigError(
                "the chat template writes today's date into the prompt, so tomorrow every prompt would be another one",
                where="prompts.template_date",
                fix="set the day that it shall see, for example 2026-01-31",
            )
        return self._date.strftime(form)


def _after_insertion(text: str, start: int, message: Message) -> int:
    """Where the message itself begins, behind what the template writes before it (an empty block of thoughts)."""
    if "reasoning_content" in message or "tool_calls" in message:
        return start
    content = message["content"].strip()
    begin = text.find(content, start)
    return begin if begin > start and text[start:begin].strip() else start
