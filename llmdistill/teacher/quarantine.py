"""`quarantined.jsonl` of a cache: requests that kill the engine. Later calls pass them over while the file is there."""

from __future__ import annotations

import json
from pathlib import Path

from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import RejectedRow

NAME = "quarantined.jsonl"


def read_quarantined(cache: Path) -> dict[bytes, RejectedRow]:
    """By record key.

    Raises:
        DataError: the file is damaged.

    """
    path = cache / NAME
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {bytes.fromhex(line["key"]): RejectedRow(line["source"], line["reason"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"not a list of quarantined requests: {error}",
            where=str(path),
            fix="remove the file; the requests in it are then tried again",
        ) from None


def write_quarantined(cache: Path, rows: dict[bytes, RejectedRow]) -> None:
    """Replace the file."""
    cache.mkdir(parents=True, exist_ok=True)
    lines = [{"key": key.hex(), "source": row.source, "reason": row.reason} for key, row in rows.items()]
    commit_bytes(cache / NAME, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
