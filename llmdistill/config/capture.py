"""`capture:` what is kept of the teacher's distributions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmdistill.config.base import Section


class CaptureConfig(Section):
    """What is kept at each supervised position."""

    kind: Literal["top_k"] = "top_k"
    """`top_k`: the k most likely tokens and their log-probabilities."""
    top_k: int = Field(default=64, ge=1, le=1024)
    """Entries kept per position."""
    logprobs: Literal["u4", "u8", "u12", "f16"] = "u8"
    """How log-probabilities are stored: companded to 4, 8 or 12 bits, or as float16 (docs/format.md has the errors)."""
    compression: Literal["none", "zstd"] = "none"
    """`zstd` makes shards about a quarter smaller; a cache may hold both."""
