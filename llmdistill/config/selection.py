"""Which of the training records are trained on, by what the cache holds of them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmdistill.config.base import Section


class SelectConfig(Section):
    """Keeps a share of the training records; held-out records stay as they are."""

    by: Literal["perplexity", "entropy", "teacher_minus_reference"]
    """Mean over the supervised tokens of a record. `perplexity`: -log p of the token, of the teacher; `entropy`: of the
    teacher's distribution; `teacher_minus_reference`: log p of the teacher less log p of a reference model."""
    keep: float = Field(gt=0.0, lt=1.0)
    """Share of the training records that is kept; at least one is."""
    end: Literal["highest", "lowest"] = "highest"
    """Which records are kept."""
    reference_cache: str | None = None
    """Folder of a cache that holds the same records, scored by the reference model; records are matched by their tokens
    and by which of them are supervised."""

    @model_validator(mode="after")
    def _a_difference_needs_a_reference(self) -> Self:
        if (self.by == "teacher_minus_reference") != (self.reference_cache is not None):
            raise ValueError(
                "by: teacher_minus_reference and reference_cache belong together; set both, or neither of them"
            )
        return self
