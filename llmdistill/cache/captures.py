"""Which captures may lie in one cache.

Rows of one cache are read in one way, so whatever decides how a row is stored and what it means is equal in all of it.
Who answered may differ: `generate` writes for several teachers where the configuration names all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from llmdistill.errors import DataError
from llmdistill.types import CaptureSpec

MAKERS = ("teacher", "engine", "dtype", "sampling")
"""Fields of a capture spec that say who answered and how its text was drawn."""
_STORED = tuple(field.name for field in dataclasses.fields(CaptureSpec) if field.name not in MAKERS)


def require_one_of(found: CaptureSpec, asked: Collection[CaptureSpec], where: str) -> None:
    """Refuse a capture that nobody asked for.

    Raises:
        DataError: `found` is none of `asked`; every field that differs from the most similar of them is shown.
    """
    if found in asked:
        return
    differing = min((_differing(found, spec) for spec in asked), key=len)
    raise DataError(
        "the cache was captured differently\n  " + "\n  ".join(differing),
        where=where,
        fix="choose another output folder, or go back to the settings that the cache was made with"
        + (", with all teachers that it has records of" if len(asked) > 1 else ""),
    )


def require_readable_together(found: CaptureSpec, other: CaptureSpec, where: str) -> None:
    """Refuse rows of two kinds in one cache.

    Raises:
        DataError: the specs differ in more than `MAKERS`; every such field is shown.
    """
    differing = [
        f"{name}: {getattr(found, name)!r}, and another shard has {getattr(other, name)!r}"
        for name in _STORED
        if getattr(found, name) != getattr(other, name)
    ]
    if differing:
        raise DataError(
            "the shards of the cache were captured differently\n  " + "\n  ".join(differing),
            where=where,
            fix="remove the shards of one capture, or generate anew",
        )


def distinct(specs: Sequence[CaptureSpec]) -> list[CaptureSpec]:
    """Each spec once, in the order of first appearance."""
    found: list[CaptureSpec] = []
    for spec in specs:
        if spec not in found:
            found.append(spec)
    return found


def common(specs: Sequence[CaptureSpec]) -> CaptureSpec:
    """What holds of all captures of one cache: of `MAKERS` those in which they differ are empty."""
    nothing: dict[str, Any] = {"teacher": "", "engine": "", "dtype": "", "sampling": {}}
    differing = {name for name in MAKERS for spec in specs if getattr(spec, name) != getattr(specs[0], name)}
    return dataclasses.replace(specs[0], **{name: nothing[name] for name in differing})


def _differing(found: CaptureSpec, asked: CaptureSpec) -> list[str]:
    return [
        f"{field.name}: the cache has {getattr(found, field.name)!r}, asked is {getattr(asked, field.name)!r}"
        for field in dataclasses.fields(CaptureSpec)
        if getattr(found, field.name) != getattr(asked, field.name)
    ]
