"""Rows that are not used: why, how they are listed, how they are counted.

A reason is `kind: details`; rows are counted by kind.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not used, and why."""

    source: str
    """`file:line`."""
    reason: str


class BadRowError(ValueError):
    """A row cannot be used: it is unreadable, or no conversation. `prompts.on_bad_row` decides what follows."""


class DroppedRowError(ValueError):
    """A row could be used, but a policy drops it: too long, a duplicate, contaminated."""


def write_rejected(path: Path, rows: Sequence[RejectedRow]) -> None:
    """Write the rows that were not used, one JSON object a line; the file is made anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    # A reason may quote half a surrogate pair, which UTF-8 cannot hold and JSON can.
    path.write_bytes(lines.encode("utf-8", errors="backslashreplace"))


def counts_by_kind(reasons: Iterable[str]) -> str:
    """`12 duplicate, 3 too long`, the most frequent kind first."""
    kinds = Counter(reason.partition(":")[0] for reason in reasons)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def shortened(value: Any) -> str:
    """A value as JSON of at most 40 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
