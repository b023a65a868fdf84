"""`student:` the model that is trained."""

from __future__ import annotations

from typing import Self

from pydantic import PositiveInt, model_validator

from llmdistill.config.base import Section


class FromTeacherConfig(Section):
    """A student made of the teacher's own layers."""

    layers: PositiveInt
    """Number of decoder layers, taken from the teacher at equal distances; the first and the last are always kept."""


class StudentConfig(Section):
    """Where the student's first weights come from: exactly one of the two."""

    from_teacher: FromTeacherConfig | None = None
    """Made of the teacher's layers."""
    model: str | None = None
    """A Hugging Face folder or hub id with the teacher's tokenizer."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.from_teacher is None) == (self.model is None):
            raise ValueError("give exactly one of student.from_teacher and student.model")
        return self
