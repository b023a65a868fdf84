"""Progress of a stage: a live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_PLAIN_SECONDS = 10.0


class Progress:
    """Shows done/total, rate and time left of one stage.

    Args:
        stage: name of the stage.
        total: amount of work.
        unit: what is counted, in the plural.
        already: how much was done by an earlier, interrupted call; it does not count in the rate.

    """

    def __init__(self, stage: str, total: int, unit: str, already: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._stage, self._total, self._unit, self._already = stage, total, unit, already
        self._first: tuple[float, int] | None = None
        self._printed = 0.0
        self._rich = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._rich = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._rich.add_task(stage, total=total, completed=already, note=f"{unit}  starting")

    def __enter__(self) -> Self:
        if self._rich:
            self._rich.start()
        else:
            self._print(f"{self._already}/{self._total} {self._unit}, starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total (earlier calls included) is finished.

        Args:
            done: amount of work done.
            note: further figures, for example `loss 2.31`.

        """
        now = time.monotonic()
        if self._first is None and done > self._already:
            self._first = (now, done)  # the rate counts from here: what came before was start-up
        left = ""
        if self._first and self._first[1] < done < self._total:
            seconds_each = (now - self._first[0]) / (done - self._first[1])
            left = f"{seconds_each * (self._total - done):.0f} s left"
        text = "  ".join(filter(None, [self._unit, note, left]))
        if self._rich:
            self._rich.update(self._task, completed=done, note=text)
        elif now - self._printed >= _PLAIN_SECONDS or done >= self._total:
            self._printed = now
            self._print(f"{done}/{self._total} {text}")

    def _print(self, text: str) -> None:
        print(f"{self._stage}: {text}", file=sys.stderr, flush=True)
