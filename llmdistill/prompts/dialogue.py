"""Messages in one form: which roles there are, what a message may hold, in which order they may stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmdistill.prompts.rejects import BadRowError, shortened

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
}
"""A role as files name it → as chat templates name it."""

_FOLLOWERS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def normalise_messages(items: Any, column: str) -> list[Message]:
    """Messages of `role` and `content` (or `from` and `value`), as chat templates expect them.

    Raises:
        BadRowError: the value is no list of messages, a role is unknown, or a message is empty.
    """
    items = decoded(items)
    if not isinstance(items, list) or not items:
        raise BadRowError(f"empty or no list: '{column}' must be a list of messages, found {shortened(items)}")
    return [_normalise(item) for item in items]


def check_order(messages: Sequence[Message]) -> None:
    """System first, then user and assistant in turns; tool results follow an assistant.

    Raises:
        BadRowError: the messages stand in another order.
    """
    before = None
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in _FOLLOWERS[before]:
            after = f"after a '{before}' message" if before else "at the start"
            raise BadRowError(f"role order: message {number} is from '{role}' {after}")
        before = role
    if before == "system":
        raise BadRowError("role order: there is nothing but a system message")


def require_text(value: Any, what: str) -> str:
    """A string with something in it.

    Raises:
        BadRowError: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"empty or no text: {what} must be a non-empty string, found {shortened(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(f"not UTF-8: {what} holds half a surrogate pair at character {error.start + 1}") from None
    return value


def decoded(value: Any) -> Any:
    """A list that a flat container (CSV) holds as its JSON text; other values as they are."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def without_nulls(value: Any) -> Any:
    """A JSON value without the keys whose value is null: Parquet gives every object of a list every key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _normalise(item: Any) -> Message:
    if not isinstance(item, dict):
        raise BadRowError(f"no message: a message must be an object, found {shortened(item)}")
    name = item["from"] if item.get("role") is None and "from" in item else item.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadRowError(f"unknown role: {shortened(name)}; known: {', '.join(ROLES)}")
    content = item["value"] if item.get("content") is None and "value" in item else item.get("content")
    if isinstance(content, list):
        content = _joined(content)
    message: Message = {"role": role}
    calls = without_nulls(item.get("tool_calls"))
    if calls and not content:
        message["content"] = ""
    else:
        message["content"] = require_text(content, f"the content of a '{role}' message")
    if calls:
        message["tool_calls"] = _tool_calls(role, calls)
    for key in ("reasoning_content", "name", "tool_call_id"):
        if item.get(key):
            message[key] = require_text(item[key], f"'{key}' of a '{role}' message")
    return message


def _joined(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type", "text") == "text":
            texts.append(require_text(part.get("text"), "a text part of a message"))
        else:
            kind = part.get("type") if isinstance(part, dict) else part
            raise BadRowError(f"unknown part: contents may have parts of type text alone, found {shortened(kind)}")
    return "\n".join(texts)


def _tool_calls(role: str, calls: Any) -> list[Any]:
    if role != "assistant" or not isinstance(calls, list):
        raise BadRowError(f"tool calls: only an assistant has a list of them, found {shortened(calls)} from '{role}'")
    normalised = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRowError(f"tool calls: a call needs function.name and function.arguments, found {shortened(call)}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            # The API's form is JSON in a string; chat templates expect the object.
            try:
                arguments = without_nulls(json.loads(arguments))
            except (ValueError, RecursionError):
                raise BadRowError(f"tool calls: arguments are not JSON: {shortened(arguments)}") from None
        kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        normalised.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return normalised
