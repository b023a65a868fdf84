"""Text that spells a special token: what a row says must not be able to end a turn or to open another one.

Tokenizers take `<|im_end|>` for the special token wherever it stands, also within what a user wrote. Escaping puts a
mark into such text before the chat template sees it, and takes the mark's own tokens out of the token ids: what is left
are ordinary tokens that decode to exactly the text of the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmdistill.prompts.rejects import BadRowError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPED = "control tokens escaped"

_MARKS = ("\ue000", "\uf8ff", "\ufdd0", "\U000f0000")
"""Code points without a meaning; a row that holds one itself is escaped with another."""


class ControlTokens:
    """The special tokens of a tokenizer, under a policy.

    Args:
        tokenizer: a fast one.
        policy: `prompts.control_tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: str) -> None:
        self._tokenizer = tokenizer
        self._policy = policy
        spellings = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}
        longest_first = sorted(map(re.escape, spellings), key=len, reverse=True)
        self.pattern = re.compile("|".join(longest_first) or "(?!)")
        """Matches the text of every special token."""

    def guarded(self, value: Any) -> tuple[Any, str]:
        """A JSON value whose texts cannot become special tokens.

        Returns:
            the value, and the mark in it; empty where no text spells a special token (or all may).

        Raises:
            BadRowError: a text spells one and the policy is `reject`, or it cannot be escaped.
        """
        spelled = [match.group() for text in _texts(value) for match in self.pattern.finditer(text)]
        if not spelled or self._policy == "keep":
            return value, ""
        if self._policy == "reject":
            raise BadRowError(f"control token: a text spells {shortened(spelled[0])}")
        taken = set().union(*_texts(value))
        mark = next((mark for mark in _MARKS if mark not in taken), None)
        if mark is None or any(len(token) < 2 for token in spelled):
            raise BadRowError(f"control token: {shortened(spelled[0])} cannot be escaped")
        return _mapped(value, lambda text: self.pattern.sub(lambda m: m.group()[0] + mark + m.group()[1:], text)), mark

    def token_ids(self, text: str, mark: str, add_special_tokens: bool = False) -> list[int]:
        """The token ids of a text made of guarded parts.

        Raises:
            BadRowError: the tokenizer merges the mark with its neighbours.
        """
        if not mark or mark not in text:
            return list(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
        encoding = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        token_ids = []
        for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if mark not in text[start:end]:
                token_ids.append(token_id)
            elif text[start:end] != mark:
                raise BadRowError("control token: the tokenizer cannot spell it in ordinary tokens")
        return token_ids


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key) if isinstance(key, str) else key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change) for item in value)
    return value
