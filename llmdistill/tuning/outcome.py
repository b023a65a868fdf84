"""What is known of a trial, in a file of its folder: what is there is never done again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError

_FILE = "outcome.json"


@dataclass(frozen=True)
class Measured:
    """The student at one point of a trial."""

    share: float
    """Of the budget."""
    step: int
    """Optimizer steps that were done."""
    value: float
    """The metric."""
    seconds: float
    """Since the point before, training and measuring."""


@dataclass(frozen=True)
class Outcome:
    """A trial so far."""

    measured: tuple[Measured, ...] = ()
    end: Literal["", "whole", "early", "failed"] = ""
    """How it ended: after its budget, stopped before, or because its training could not go on; empty: it has not."""
    reason: str = ""
    """Why it failed."""


def read_outcome(folder: Path) -> Outcome:
    """The outcome of a trial so far.

    Raises:
        DataError: the file cannot be read.

    """
    path = folder / _FILE
    if not path.is_file():
        return Outcome()
    try:
        found = json.loads(path.read_text())
        return Outcome(tuple(Measured(**point) for point in found["measured"]), found["end"], found["reason"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), fix=f"remove {folder}") from None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Put the outcome of a trial in the place of the one before."""
    commit_bytes(folder / _FILE, (json.dumps(asdict(outcome), indent=1) + "\n").encode())
