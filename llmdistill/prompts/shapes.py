"""From a row's columns to a conversation or a text.

The formats are tried in the order of `FORMATS`; the first whose first column holds something is the row's format.
Columns that belong to no format are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.prompts.dialogue import Message, check_order, decoded, normalise_messages, require_text, without_nulls
from llmdistill.prompts.rejects import BadRowError, shortened

FORMATS = {
    "messages": "messages: [{role, content}, …]",
    "conversations": "conversations: [{from, value}, …]",
    "instruction": "instruction, input, output",
    "prompt": "prompt, completion (or response)",
    "question": "question, answer",
    "text": "text",
}
"""First column of a format → its description."""

COLUMNS = (*FORMATS, "input", "output", "completion", "response", "answer", "system", "tools")

REFERENCE = "reference"
"""Of an expanded row: the column that holds the wanted answer, where one was named."""

LATER_TURNS = "later user turns are not asked"


@dataclass(frozen=True)
class PromptRow:
    """One conversation or one text, exactly one of the two."""

    source: str
    """`file:line`."""
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    tools: tuple[Any, ...] = ()
    """Schemas of the tools that the assistant may call."""
    changes: tuple[str, ...] = ()
    """What of the row is not used, though the row is."""
    reference: str | None = None
    """The wanted answer, for evaluation: of the column named for it, else what the conversation ends with."""
    source_name: str = ""
    """`SourceConfig.known_as` of its source."""
    answered_by: Mapping[str, float] = field(default_factory=lambda: {MAIN_TEACHER: 1.0})
    """`SourceConfig.answered_by` of its source."""


def expanded(
    value: Any, columns: Mapping[Any, str], source: str, reference: str | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """A row under the formats' column names: once, or once for every item of the list that `columns` leads into.

    Args:
        value: the row.
        columns: name of a format's column → name of this row's column, or `list.field`.
        source: file and line.
        reference: this row's column, or `list.field`, that becomes `REFERENCE`.

    Returns:
        pairs of a source and a row.

    Raises:
        BadRowError: the row is no object, or its columns belong to none of the formats.
    """
    if not isinstance(value, dict):
        raise BadRowError(f"not a JSON object: {shortened(value)}")
    renamed = {path if path in value else path.partition(".")[0] for path in columns.values()}
    row = {name: value[name] for name in COLUMNS if name in value and name not in renamed}
    in_list: dict[str, str] = {}
    lists: dict[str, list[Any]] = {}
    for name, path in columns.items():
        head, _, field = path.partition(".")
        if path in value:
            row[name] = value[path]
        elif field and isinstance(value.get(head), dict):
            row[name] = value[head].get(field)
        elif field and isinstance(items := decoded(value.get(head)), list):
            in_list[name] = field
            lists[head] = items
    if not any(name in row or name in in_list for name in FORMATS):
        found = ", ".join(map(str, value)) or "none"
        accepted = "; ".join(FORMATS.values())
        raise BadRowError(
            f"unknown columns: found {found}; accepted: {accepted}; `columns:` of the source maps other names to these"
        )
    if reference is not None:
        head, _, field = reference.partition(".")
        inner = value.get(head)
        row[REFERENCE] = value.get(reference, inner.get(field) if isinstance(inner, dict) else None)
        if reference not in value and head in lists:
            in_list[REFERENCE] = field
    if not lists:
        return [(source, row)]
    if len(lists) > 1:
        raise BadRowError(f"columns: they lead into two lists, {' and '.join(lists)}")
    ((head, items),) = lists.items()
    if not items or not all(isinstance(item, dict) for item in items):
        raise BadRowError(f"empty or no objects: '{head}' must be a list of objects, found {shortened(items)}")
    rows = [row | {name: item.get(field) for name, field in in_list.items()} for item in items]
    if len(rows) == 1:
        return [(source, rows[0])]
    return [(f"{source}[{number}]", row) for number, row in enumerate(rows, start=1)]


def conversation(row: Mapping[str, Any], columns: Mapping[Any, str], source: str) -> PromptRow:
    """The conversation or text of an expanded row.

    Raises:
        BadRowError: a column that is needed is empty or of another type, or the messages do not make a conversation.
    """
    names = [name for name in FORMATS if name in row]
    names = [name for name in names if name in columns] or names
    name = next((name for name in names if not _is_empty(row[name])), names[0])
    if name == "text":
        return PromptRow(source, text=require_text(row["text"], "'text'"), reference=_text(row.get(REFERENCE)))
    tools = decoded(row.get("tools")) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError(f"tools: 'tools' must be a list of schemas, found {shortened(tools)}")
    messages, changes = _messages(row, name)
    if not _is_empty(row.get("system")):
        if messages[0]["role"] == "system":
            raise BadRowError("role order: the row has a system message and a column 'system'")
        messages = [{"role": "system", "content": require_text(row["system"], "'system'")}, *messages]
    check_order(messages)
    last = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    return PromptRow(
        source,
        messages=tuple(messages),
        tools=tuple(without_nulls(tools)),
        changes=changes,
        reference=_text(row.get(REFERENCE, last)),
    )


def _messages(row: Mapping[str, Any], name: str) -> tuple[list[Message], tuple[str, ...]]:
    """The messages of a row in the format whose first column is `name`, and what of them is left out."""
    if name in ("messages", "conversations"):
        return normalise_messages(row[name], name), ()
    changes: tuple[str, ...] = ()
    if name == "prompt" and isinstance(row["prompt"], list):
        if all(isinstance(turn, str) for turn in row["prompt"]) and row["prompt"]:
            # The questions of a dialogue whose answers are to come: the second needs the answer to the first.
            messages = [_user(row["prompt"][0], "the first item of 'prompt'")]
            changes = (LATER_TURNS,) if len(row["prompt"]) > 1 else ()
        else:
            messages = normalise_messages(row["prompt"], "prompt")
    else:
        messages = [_user(row[name], f"'{name}'")]
    if name == "instruction" and not _is_empty(row.get("input")):
        messages[0]["content"] += "\n\n" + require_text(row["input"], "'input'")
    answer = next((column for column in _ANSWERS[name] if not _is_empty(row.get(column))), None)
    if answer is None:
        return messages, changes
    if changes:
        raise BadRowError("role order: there is one answer to several user turns")
    if isinstance(row[answer], list):
        return messages + normalise_messages(row[answer], answer), ()
    return [*messages, {"role": "assistant", "content": require_text(row[answer], f"'{answer}'")}], ()


_ANSWERS = {"instruction": ("output",), "prompt": ("completion", "response"), "question": ("answer",)}


def _user(value: Any, what: str) -> Message:
    return {"role": "user", "content": require_text(value, what)}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
