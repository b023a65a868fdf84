"""Reading prompt files: every line becomes a `PromptRow` or a `RejectedRow`, none is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmdistill.errors import DataError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PromptRow:
    """One conversation or one text, exactly one of the two."""

    source: str
    """`file:line`."""
    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not used, and why."""

    source: str
    reason: str


def read_prompts(paths: Sequence[str]) -> Iterator[PromptRow | RejectedRow]:
    """Read JSONL files, in order.

    Raises:
        DataError: a file cannot be opened, or is not UTF-8.

    """
    for path in paths:
        try:
            # utf-8-sig: a byte order mark at the start of a file is not text.
            with open(path, encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _parse(line, f"{path}:{number}")
        except OSError as error:
            raise DataError(f"cannot read the prompts: {error.strerror}", where=path) from None
        except UnicodeDecodeError as error:
            raise DataError(f"not a UTF-8 file: {error.reason}", where=path) from None


def write_rejected(path: Path, rows: Sequence[RejectedRow]) -> None:
    """Write the rows that were not used, one JSON object a line; the file is made anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parse(line: str, source: str) -> PromptRow | RejectedRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return RejectedRow(source, f"not JSON: {error.msg} at column {error.colno}")
    if not isinstance(row, dict):
        return RejectedRow(source, "not a JSON object")
    if "messages" in row:
        fault = _fault_in_messages(row["messages"])
        if fault:
            return RejectedRow(source, fault)
        return PromptRow(source, messages=tuple({"role": m["role"], "content": m["content"]} for m in row["messages"]))
    if "text" in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            return RejectedRow(source, f"'text' must be a non-empty string, found {_short(row['text'])}")
        return PromptRow(source, text=row["text"])
    return RejectedRow(source, f"no 'messages' and no 'text'; columns found: {', '.join(map(str, row)) or 'none'}")


def _fault_in_messages(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"'messages' must be a non-empty list, found {_short(messages)}"
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            return f"unknown role {_short(role)}; known: {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f"the content of a '{message['role']}' message must be a non-empty string"
    if messages[-1]["role"] == "system":
        return "the last message is a system message"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
