"""Progress of a stage: a live screen on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

STAGES = ("generate", "train", "export", "evaluate", "report")
_PLAIN_SECONDS = 10.0
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


class Progress:
    """Shows where a run is, done/total, rates, values and time left of one stage.

    On a terminal this is a screen of a few lines: the stages of a run, a bar, and for each value (a loss, a norm) its
    course. It gives way to one plain line when the stage ends.

    Args:
        stage: name of the stage; its first word is one of `STAGES`.
        total: amount of work.
        unit: what is counted, in the plural.
        already: how much was done by an earlier, interrupted call; it does not count in the rate.
        console: where the screen is drawn; None: standard error, if that is a terminal.

    """

    def __init__(self, stage: str, total: int, unit: str, already: int = 0, console: Console | None = None) -> None:
        self._stage, self._total, self._unit, self._already = stage, total, unit, already
        self._first: tuple[float, int] | None = None
        self._started = time.monotonic()
        self._printed = 0.0
        self._last = ""
        self._history: dict[str, list[float]] = {}
        self._live: Any = None
        if console is None and sys.stderr.isatty():
            from rich.console import Console

            console = Console(stderr=True)
        if console is not None:
            from rich.live import Live

            self._bar = _bar()
            self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)
            self._task = self._bar.add_task(stage, total=total, completed=already, note=f"{unit}  starting")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._print(f"{self._already}/{self._total} {self._unit}, starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            if self._last:
                self._print(f"{self._last}  {time.monotonic() - self._started:.0f} s")

    def update(self, done: int, note: str = "", values: Mapping[str, float] | None = None) -> None:
        """Show that `done` of the total (earlier calls included) is finished.

        Args:
            done: amount of work done.
            note: further facts, for example a rate.
            values: what is worth watching over time, such as losses.

        """
        now = time.monotonic()
        if self._first is None and done > self._already:
            self._first = (now, done)  # the rate counts from here: what came before was start-up
        left = ""
        if self._first and self._first[1] < done < self._total:
            seconds_each = (now - self._first[0]) / (done - self._first[1])
            left = f"{seconds_each * (self._total - done):.0f} s left"
        for name, value in (values or {}).items():
            self._history.setdefault(name, []).append(value)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        self._last = "  ".join(filter(None, [f"{done}/{self._total} {self._unit}", shown, note]))
        if self._live:
            self._bar.update(self._task, completed=done, note="  ".join(filter(None, [self._unit, note, left])))
        elif now - self._printed >= _PLAIN_SECONDS or done >= self._total:
            self._printed = now
            self._print("  ".join(filter(None, [self._last, left])))

    def _print(self, text: str) -> None:
        print(f"{self._stage}: {text}", file=sys.stderr, flush=True)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        current = self._stage.split()[0]
        trail = Text("  →  ").join(Text(name, style="bold" if name == current else "dim") for name in STAGES)
        table = Table.grid(padding=(0, 2))
        for name, values in self._history.items():
            table.add_row(Text(name, style="dim"), Text(f"{values[-1]:.4g}", justify="right"), sparkline(values))
        return Group(trail, self._bar, table)


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """The course of some values in `width` characters at most, low to high; neighbours are averaged."""
    parts = min(len(values), width)
    means = []
    for number in range(parts):
        group = values[number * len(values) // parts : (number + 1) * len(values) // parts]
        means.append(sum(group) / len(group))
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in means)
