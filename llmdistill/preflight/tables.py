"""Tables for people, with rich; the JSON of the same goes around this file."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmdistill.preflight.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
_WIDTH = 1000
"""Of output that goes to no terminal: a finding stays one line, for whoever searches them."""


def console() -> Console:
    """Standard output."""
    found = Console(soft_wrap=False)
    return found if found.is_terminal else Console(width=_WIDTH)


def findings_table(findings: Sequence[Finding]) -> Table:
    """One line a finding; what is wrong comes with its fix."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        text = escape(finding.what) + (f"; [bold]fix:[/bold] {escape(finding.fix)}" if finding.fix else "")
        table.add_row(f"[{_STYLES[finding.level]}]{finding.level}[/]", finding.check, text)
    return table


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A titled table: the first column to the left, figures to the right; two columns are names and words."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(columns):
        made.add_column(
            name,
            justify="left" if number == 0 or len(columns) == 2 else "right",
            no_wrap=number > 0 and len(columns) > 2,
        )
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made
