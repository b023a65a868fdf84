"""What is done with rows that are longer than the teacher can read. Nothing is cut without being counted.

`truncate_left` keeps the end: the oldest exchanges of a conversation go first (never the system message), then the
beginning of its first question; of a text, the first tokens after the begin-of-sequence token. `truncate_right` keeps
the beginning: the end of the last question goes (`generate`), or the end of what is scored. Conversations are rendered
anew after a cut, so that their template stays whole. A row that would lose its last question, or every supervised
token, is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmdistill.prompts.rejects import DroppedRowError
from llmdistill.prompts.render import Rendered, Renderer
from llmdistill.prompts.shapes import PromptRow


@dataclass(frozen=True)
class Fitted:
    """A row that fits."""

    records: list[Rendered]
    """None is longer than the limit."""
    changes: tuple[str, ...]
    """What was changed to make them."""
    row: PromptRow
    """What they were rendered from; records of texts, and of what is scored, may be cut behind that."""


def fitting(row: PromptRow, renderer: Renderer, limit: int, policy: str, limit_is: str) -> Fitted:
    """The records of a row, none longer than `limit` tokens.

    Args:
        row: what `Renderer.asked` returned.
        renderer: see there.
        limit: tokens of a record.
        policy: `prompts.length`.
        limit_is: where the limit comes from, for messages.

    Raises:
        DroppedRowError: it is too long, and the policy is to drop or cannot help.
        BadRowError: see `Renderer.render`.
    """
    records, changes = renderer.render(row)
    length = max(len(record.token_ids) for record in records)
    if length <= limit:
        return Fitted(records, changes, row)
    reason = f"too long: {length} tokens where {limit_is}"
    if policy == "drop":
        raise DroppedRowError(reason)
    side = policy.removeprefix("truncate_")
    scored = records[0].supervised is not None
    if row.messages is None or (scored and side == "right"):
        records = [_cut(record, limit, side, renderer.starts_with_bos(record)) for record in records]
    while (length := max(len(record.token_ids) for record in records)) > limit:
        shorter = _shorter(row, length - limit, side, renderer)
        if shorter is None:
            raise DroppedRowError(f"{reason}; cutting cannot help, its other messages alone are too long")
        row = shorter
        records, changes = renderer.render(row)
    if scored and not all(any(record.supervised or ()) for record in records):
        raise DroppedRowError(f"{reason}; cutting would leave no supervised token")
    return Fitted(records, (*changes, f"truncated on the {side}"), row)


def _cut(record: Rendered, limit: int, side: str, keep_first: bool) -> Rendered:
    """The first or the last `limit` tokens; a begin-of-sequence token stays."""
    assert record.supervised is not None
    if side == "right" or len(record.token_ids) <= limit:
        return Rendered(record.token_ids[:limit], record.supervised[:limit])
    kept = (record.token_ids[:1] if keep_first else ()) + record.token_ids[len(record.token_ids) - limit + keep_first :]
    return Rendered(kept, (False, *[True] * (limit - 1)))


def _shorter(row: PromptRow, excess: int, side: str, renderer: Renderer) -> PromptRow | None:
    """The row with about `excess` tokens less; None where there is nothing left to cut."""
    messages = list(row.messages or ())
    questions = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if side == "left" and len(questions) > 1:
        return replace(row, messages=(*messages[: questions[0]], *messages[questions[1] :]))
    place = questions[0] if side == "left" else len(messages) - 1
    content = renderer.shortened(messages[place]["content"], excess, side)
    if not content.strip():
        return None
    messages[place] = {**messages[place], "content": content}
    return replace(row, messages=tuple(messages))
