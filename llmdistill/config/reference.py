"""docs/config.md, made from the sections themselves: `python -m llmdistill.config.reference > docs/config.md`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmdistill.config.run import RunConfig

_HEAD = """\
# Configuration

One YAML file describes a run; `key=value` on the command line overrides any leaf (`train.lr=1e-4`,
`objectives.0.weight=0.5`). Unknown keys are refused with the nearest known one. This page is made from the program by
`python -m llmdistill.config.reference`.
"""


def reference() -> str:
    """The page, in Markdown."""
    return _HEAD + "".join(_section("", RunConfig, "The whole file", set()))


def _section(path: str, model: type[BaseModel], title: str, seen: set[tuple[str, type[BaseModel]]]) -> Iterator[str]:
    yield f"\n## {f'`{path}`: ' if path else ''}{title}\n\n| key | type | default | |\n|---|---|---|---|\n"
    below = []
    for name, field in model.model_fields.items():
        models = _models(field.annotation)
        mapping = typing.get_origin(field.annotation) is dict
        kind = "section" if models else _type(field.annotation)
        if models and mapping:
            kind, models = f"mapping of sections `{models[0].__name__.removesuffix('Config').lower()}`", []
        text = " ".join((field.description or "").split())
        default = _default(field, kind == "section")
        yield f"| `{name}` | {kind} | {default} | {text} |\n"
        below += [(f"{path}.{name}".lstrip("."), child) for child in models]
    for child_path, child in below:
        if (child_path, child) not in seen:
            # Members of a union may share a section, which stands in the page once.
            seen.add((child_path, child))
            yield from _section(child_path, child, " ".join((child.__doc__ or "").split()), seen)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is dict:
        return "mapping"
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if arguments := [argument for argument in typing.get_args(annotation) if argument not in (type(None), ...)]:
        return " or ".join(_type(argument) for argument in arguments)
    return re.sub(r"^str$", "text", getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo, is_section: bool) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "" if is_section else f"`{'null' if default is None else default}`"


if __name__ == "__main__":
    print(reference(), end="")
