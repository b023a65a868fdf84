"""`teacher.filters:` which responses are kept."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmdistill.config.base import Section


class FiltersConfig(Section):
    """Responses that are dropped when they are written, each named in `rejected.jsonl`."""

    unfinished: Literal["keep", "drop"] = "keep"
    """Responses that were cut at `max_new_tokens`."""
    max_repetition: float = Field(default=1.0, ge=0.0, le=1.0)
    """Responses are dropped when more than this share of their runs of four tokens came before in the same response."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Samples of a prompt that equal an earlier sample of it."""
    function: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    """`module:function` of your own, importable where the replicas run: takes a `llmdistill.teacher.filters.Response`
    and returns a number (or True and False)."""
    minimum: float = 0.5
    """Responses to which the function gives less are dropped."""
    best_of_n: bool = False
    """Of the samples of a prompt only the one to which the function gives most is kept."""

    @model_validator(mode="after")
    def _best_needs_a_function(self) -> Self:
        if self.best_of_n and self.function is None:
            raise ValueError("best_of_n: choosing the best needs teacher.filters.function")
        return self
