"""`passed_over.jsonl` of a cache: requests that will have no record, so that later calls do not ask them again.

These are requests that kill the engine, and responses that filters dropped (as long as the filters stay the same).
Removing the file means trying again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError
from llmdistill.prompts.rejects import RejectedRow

NAME = "passed_over.jsonl"


@dataclass(frozen=True)
class PassedOver:
    """One request."""

    key: bytes
    row: RejectedRow
    filters: str = ""
    """Fingerprint of the filters that dropped it; empty where it kills the engine."""


def read_passed_over(cache: Path) -> list[PassedOver]:
    """What earlier calls have given up.

    Raises:
        DataError: the file is damaged.

    """
    path = cache / NAME
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            PassedOver(bytes.fromhex(line["key"]), RejectedRow(line["source"], line["reason"]), line["filters"])
            for line in lines
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"not a list of requests that were passed over: {error}",
            where=str(path),
            fix="remove the file; the requests in it are then tried again",
        ) from None


def write_passed_over(cache: Path, entries: list[PassedOver]) -> None:
    """Replace the file."""
    cache.mkdir(parents=True, exist_ok=True)
    lines = [
        {"key": entry.key.hex(), "source": entry.row.source, "reason": entry.row.reason, "filters": entry.filters}
        for entry in entries
    ]
    commit_bytes(cache / NAME, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
