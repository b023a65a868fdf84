"""`prompts:` what the teacher is asked about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmdistill.config.base import Section


class SourceConfig(Section):
    """One file of prompts."""

    path: str
    """JSONL file; relative paths start at the working directory. Rows hold `messages` (a list of role and
    content) or `text`."""


class PromptsConfig(Section):
    """The prompt corpus and what is done with it."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Read in this order."""
    mode: Literal["generate", "score"] = "generate"
    """`generate`: the teacher answers each prompt; `score`: existing text gets the teacher's distributions.
    In `score` mode, `messages` must end with an assistant turn, which is what is scored; of a `text` row every token
    after the first is."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept for evaluation, chosen by a hash of the prompt, so that equal prompts (and all samples
    of one) always fall on the same side."""
