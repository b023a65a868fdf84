"""What the checks say, and the exit status that follows from all they said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmdistill.errors import ClusterError, ConfigError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    """Subject, a word or two."""
    level: Level
    what: str
    """What was found, with its numbers."""
    fix: str = ""
    """What a person can do; empty where all is well."""
    exit_status: int = 0
    """Of an error: 2, configuration or data must change, or 4, the cluster cannot give it."""

    def __post_init__(self) -> None:
        assert (self.level == "ok") == (not self.fix), f"{self.check}: a fix is for what is not ok"
        assert (self.level == "error") == bool(self.exit_status)


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, fix: str) -> Finding:
    """It will run, but perhaps not as expected."""
    return Finding(check, "warning", what, fix)


def error(check: str, what: str, fix: str) -> Finding:
    """The configuration or the data must change before this can run."""
    return Finding(check, "error", what, fix, ConfigError.exit_status)


def cannot(check: str, what: str, fix: str) -> Finding:
    """The machine or the cluster cannot give what is asked."""
    return Finding(check, "error", what, fix, ClusterError.exit_status)


def exit_status(findings: Sequence[Finding]) -> int:
    """0 without errors; 2 where configuration or data must change; 4 where only the cluster is too small."""
    statuses = {finding.exit_status for finding in findings if finding.level == "error"}
    return min(statuses, default=0)


def number(value: float) -> str:
    """1234567 → 1.23 M, as people read it."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes in decimal units, as disks are sold: 268800000000 → 268.8 GB."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"
