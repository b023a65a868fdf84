"""Progress of a stage: a live screen on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import math
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
_NOT_FINITE = "×"
_WIDTH = 40
_GAP = 2


class Progress:
    """Shows where a run is, done/total, rates, values and time left of one stage.

    On a terminal this is a screen of a few lines: the stages of a run, a bar, rates and time left, and for each value
    (a loss, a norm) its course. It gives way to one plain line when the stage ends.

    Args:
        stage: name of the stage; its first word is one of `STAGES`.
        total: amount of work.
        unit: what is counted, in the plural.
        already: how much was done by an earlier, interrupted call; it does not count in the rate.
        console: where the screen is drawn; None: standard error, if that is a terminal that can move its cursor.

    """

    def __init__(self, stage: str, total: int, unit: str, already: int = 0, console: Console | None = None) -> None:
        self._stage, self._total, self._unit, self._already = stage, total, unit, already
        self._done = already
        self._first: tuple[float, int] | None = None
        self._started = time.monotonic()
        self._printed = 0.0
        self._last = ""
        self._facts = "starting"
        self._history: dict[str, list[float]] = {}
        self._live: Any = None
        console = console or _terminal()
        if console is not None:
            from rich.live import Live

            self._console = console
            self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

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
                self._print(f"{self._last}  {duration(time.monotonic() - self._started)}")

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
            left = f"{duration(seconds_each * (self._total - done))} left"
        for name, value in (values or {}).items():
            self._history.setdefault(name, []).append(value)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        self._done, self._facts = done, "  ".join(filter(None, [note, left]))
        self._last = "  ".join(filter(None, [f"{done}/{self._total} {self._unit}", shown, note]))
        if not self._live and (now - self._printed >= _PLAIN_SECONDS or done >= self._total):
            self._printed = now
            self._print("  ".join(filter(None, [self._last, left])))

    def _print(self, text: str) -> None:
        print(f"{self._stage}: {text}", file=sys.stderr, flush=True)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        current = self._stage.split()[0]
        trail = Text(" → ").join(Text(name, style="bold" if name == current else "dim") for name in STAGES)
        bar = Table.grid(padding=(0, _GAP))
        count = Text(f"{self._done}/{self._total} {self._unit}", no_wrap=True)
        bar.add_row(Text(self._stage, style="bold"), ProgressBar(self._total, self._done, width=24), count)
        elapsed = f"{duration(time.monotonic() - self._started)} so far"
        width = max(map(len, self._history), default=0)
        table = Table.grid(padding=(0, _GAP))
        for name, values in self._history.items():
            number = f"{values[-1]:.4g}".rjust(9)
            room = min(self._console.width - width - len(number) - 2 * _GAP, _WIDTH)
            course = sparkline(values, room) if room > 0 else ""
            table.add_row(Text(name.ljust(width), style="dim"), number, course)
        return Group(trail, bar, Text("  ".join(filter(None, [self._facts, elapsed]))), table)


def _terminal() -> Console | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


def duration(seconds: float) -> str:
    """A span of time for people: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """The course of some values in `width` characters at most, low to high; neighbours are averaged.

    A part with a value that is infinite or no number is marked, and does not count in the scale.
    """
    parts = min(len(values), width)
    means = []
    for number in range(parts):
        group = values[number * len(values) // parts : (number + 1) * len(values) // parts]
        means.append(sum(group) / len(group))
    finite = [mean for mean in means if math.isfinite(mean)]
    low = min(finite, default=0.0)
    span = (max(finite, default=0.0) - low) or 1.0
    return "".join(
        _BARS[round((mean - low) / span * (len(_BARS) - 1))] if math.isfinite(mean) else _NOT_FINITE for mean in means
    )
