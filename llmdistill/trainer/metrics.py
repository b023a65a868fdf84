"""The training's lines in metrics.jsonl."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_SECONDS = 1.0


class MetricsFile:
    """Appends one JSON object a line; lines of steps that are about to be repeated are removed first.

    Args:
        path: the file, shared with other trainings of the run.
        model: name of the model that is trained, part of each line.
        first_step: steps from here on are still to come.

    """

    def __init__(self, path: Path, model: str, first_step: int) -> None:
        self._path = path
        self._model = model
        path.parent.mkdir(parents=True, exist_ok=True)
        found = read_metrics(path)
        kept = [line for line in found if line.get("model") != model or line["step"] <= first_step]
        self.kept: list[dict[str, Any]] = [line for line in kept if line.get("model") == model]
        """Lines of this model that stay."""
        self.seen: int = max((line["step"] for line in found if line.get("model") == model), default=0)
        """The last step that an earlier call logged, whether it is repeated or not."""
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Append the line of a finished step (the first is 1), and return it.

        Numbers that are not finite are left out: JSON has no word for them.
        """
        rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in values.items()}
        finite = {key: value for key, value in rounded.items() if not isinstance(value, float) or math.isfinite(value)}
        line = {"stage": "train", "model": self._model, "step": step, "time": round(time.time(), 3), **finite}
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return line


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; none where there is no file. A last line cut by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@contextmanager
def watched(path: Path, model: str, on_line: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within this context, call `on_line` with the newest line of a model whenever there is one, from a thread."""
    stopped, last = threading.Event(), [None]

    def report() -> None:
        lines: list[Any] = [line for line in read_metrics(path) if line.get("model") == model]
        if lines and lines[-1] != last[0]:
            last[0] = lines[-1]
            on_line(lines[-1])

    def follow() -> None:
        while not stopped.wait(_POLL_SECONDS):
            report()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        report()


def _rounded(value: float) -> float:
    return value if not math.isfinite(value) or value == 0 else round(value, 6 - math.floor(math.log10(abs(value))))
