"""Word n-grams of rows, as hashes: what near-duplicates and decontamination compare."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from llmdistill.prompts.shapes import PromptRow

_WORD = re.compile(r"\w+")


def texts(row: PromptRow, roles: Sequence[str] = ("user", "assistant", "tool")) -> list[str]:
    """The contents of a row's messages of these roles; a text counts as a user's."""
    if row.messages is None:
        return [str(row.text)] if "user" in roles else []
    return [message["content"] for message in row.messages if message["role"] in roles]


def words(text: str) -> list[str]:
    """The words of a text (NFKC, lower case, no punctuation)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def ngram_hashes(sequence: Sequence[str], size: int) -> set[int]:
    """64-bit hashes of the n-grams of a sequence of words; of a shorter sequence there are none."""
    return {digest(sequence[start : start + size]) for start in range(len(sequence) - size + 1)}


def digest(sequence: Sequence[str]) -> int:
    """64-bit hash of a sequence of words."""
    return int.from_bytes(hashlib.blake2b(" ".join(sequence).encode(), digest_size=8).digest(), "little")
