"""From sources to conversations and texts: every row becomes a `PromptRow` or a `RejectedRow`, none is lost.

    files or hub → containers (rows) → shapes (conversations) → shuffle → limit → mixture

All of it streams. What rows become for a teacher (template, lengths, duplicates) is in `requests.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llmdistill.config.prompts import PromptsConfig, SourceConfig
from llmdistill.errors import DataError
from llmdistill.prompts.dialogue import decoded
from llmdistill.prompts.files import find_files
from llmdistill.prompts.hub import hub_name, read_hub
from llmdistill.prompts.mixing import mixed, shuffled
from llmdistill.prompts.rejects import BadRowError, RejectedRow
from llmdistill.prompts.shapes import PromptRow, conversation, expanded


def read_prompts(prompts: PromptsConfig, reference: str | None = None) -> Iterator[PromptRow | RejectedRow]:
    """The rows of all sources, in the order that the configuration asks for.

    Args:
        prompts: the configuration.
        reference: column with the wanted answers; by default they are what the conversations end with.

    Raises:
        DataError: a source cannot be read or holds no usable row; a row is bad and `on_bad_row` is `error`.
    """
    strict = prompts.on_bad_row == "error"
    rejected: list[RejectedRow] = []
    columns = [_ColumnsSeen(source) for source in prompts.sources]
    readers = []
    for source, seen in zip(prompts.sources, columns, strict=True):
        rows = _usable(_read(source, strict, seen, reference), rejected)
        if prompts.shuffle is not None:
            rows = shuffled(rows, prompts.shuffle.seed, prompts.shuffle.buffer_size)
        readers.append(itertools.islice(rows, source.limit))
    weights = [source.weight for source in prompts.sources if source.weight is not None]
    for row in mixed(readers, weights) if weights else itertools.chain.from_iterable(readers):
        yield from _drained(rejected)
        yield row
    yield from _drained(rejected)
    for seen in columns:
        seen.require_all()


def read_source(source: SourceConfig, strict: bool) -> Iterator[PromptRow | RejectedRow]:
    """The rows of one source, in order.

    Args:
        source: where they are.
        strict: whether a bad row is an error.

    Raises:
        DataError: it cannot be read, or holds no usable row; a bad row, with `strict`.
    """
    yield from _read(source, strict, _ColumnsSeen(source))


def source_name(source: SourceConfig) -> str:
    """A source in messages."""
    return source.path or hub_name(source)


_STRICT_FIX = "correct the row, or list such rows and go on with prompts.on_bad_row: reject"


def _read(
    source: SourceConfig, strict: bool, columns: _ColumnsSeen, reference: str | None = None
) -> Iterator[PromptRow | RejectedRow]:
    usable, first_bad = 0, None
    for row in _rows(source, columns, reference):
        if isinstance(row, RejectedRow):
            if strict:
                raise DataError(row.reason, where=row.source, fix=_STRICT_FIX)
            first_bad = first_bad or f"{row.source}: {row.reason}"
        else:
            usable += 1
        yield row
    columns.require_all()
    if not usable:
        reason = f"no row can be used; the first: {first_bad}" if first_bad else "there are no rows"
        raise DataError(reason, where=source_name(source))


def _values(source: SourceConfig) -> Iterator[tuple[str, Any]]:
    if source.hub is not None:
        for number, value in read_hub(source):
            yield f"{hub_name(source)}:{number}", value
        return
    for file in find_files(source):
        for number, value in file.rows(source.sample_by):
            yield f"{file.name}:{number}", value


def _rows(source: SourceConfig, columns: _ColumnsSeen, reference: str | None) -> Iterator[PromptRow | RejectedRow]:
    for where, value in _values(source):
        try:
            if isinstance(value, BadRowError):
                raise value
            columns.see(value)
            items = expanded(value, source.columns, where, reference)
        except BadRowError as error:
            yield RejectedRow(where, str(error))
            continue
        for item_where, item in items:
            try:
                row = conversation(item, source.columns, item_where)
                yield replace(row, source_name=source.known_as, answered_by=source.answered_by)
            except BadRowError as error:
                yield RejectedRow(item_where, str(error))
            except RecursionError:
                yield RejectedRow(item_where, "not readable: nested too deep")


class _ColumnsSeen:
    """A column that `columns` names and no row has is a misspelling, not a column of nulls."""

    def __init__(self, source: SourceConfig) -> None:
        self._source = source
        self._missing = set(source.columns.values())
        self._found: dict[str, None] = {}

    def see(self, value: Any) -> None:
        if self._missing and isinstance(value, dict):
            self._found.update(dict.fromkeys(value))
            self._missing = {path for path in self._missing if not _has(value, path)}

    def require_all(self) -> None:
        if self._missing and self._found:
            raise DataError(
                f"no row has the column {', '.join(sorted(self._missing))}; columns found: {', '.join(self._found)}",
                where=f"columns of {source_name(self._source)}",
            )


def _has(value: Any, path: str) -> bool:
    if not isinstance(value, dict):
        return isinstance(items := decoded(value), list) and any(_has(item, path) for item in items)
    head, _, rest = path.partition(".")
    return path in value or (bool(rest) and _has(value.get(head), rest))


def _usable(rows: Iterator[PromptRow | RejectedRow], rejected: list[RejectedRow]) -> Iterator[PromptRow]:
    for row in rows:
        if isinstance(row, RejectedRow):
            rejected.append(row)
        else:
            yield row


def _drained(rejected: list[RejectedRow]) -> Iterator[RejectedRow]:
    yield from rejected
    rejected.clear()
