from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from llmdistill.observe.progress import Progress, duration, sparkline


def test_a_log_has_plain_lines_with_values(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train student", 2, "steps") as progress:
        progress.update(1, "90 tokens/s", {"forward_kl": 3.25})
        progress.update(2, "95 tokens/s", {"forward_kl": 2.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train student: 0/2 steps, starting",
        "train student: 1/2 steps  forward_kl 3.25  90 tokens/s",
        "train student: 2/2 steps  forward_kl 2.5  95 tokens/s",
    ]


def test_a_log_has_one_line_for_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100)  # a second passes whenever somebody asks
    monkeypatch.setattr("llmdistill.observe.progress.time.monotonic", lambda: float(next(clock)))
    with Progress("generate", 1000, "records") as progress:
        for done in range(1, 101):
            progress.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("generate: 91/1000 records  15 min left")


def test_a_terminal_has_one_screen_with_stages_rates_values_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, color_system=None)
    with Progress("train student", 10, "steps", console=console) as progress:
        for step in range(1, 6):
            progress.update(step, "95 tokens/s", {"forward_kl": 5.0 - step, "grad_norm": 1.0})
        progress._live.refresh()
        screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "generate → train → export → evaluate → report" in screen
    for part in ("5/10", "95 tokens/s", "s left", "forward_kl", "█▆▅▃▁", "grad_norm"):
        assert part in screen, part
    assert re.fullmatch(
        r"train student: 5/10 steps  forward_kl 0  grad_norm 1  95 tokens/s  \d+ s\n", capsys.readouterr().err
    )


def test_sparkline_of_many_values_has_its_width_and_its_ends() -> None:
    line = sparkline([float(value) for value in range(1000)], width=20)
    assert len(line) == 20
    assert line[0] == "▁" and line[-1] == "█"
    assert sparkline([3.0, 3.0]) == "▁▁"


def test_values_that_are_not_finite_are_marked() -> None:
    assert sparkline([1.0, float("nan"), 3.0, float("inf")]) == "▁×█×"
    assert sparkline([float("nan")]) == "×"


@pytest.mark.parametrize(("seconds", "text"), [(40.4, "40 s"), (720, "12 min"), (11100, "3 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


RUN = """
import sys
from llmdistill.observe.progress import Progress
with Progress("train student", 80, "steps") as progress:
    for step in range(1, 61):
        progress.update(step, "690 tokens/s", {"forward_kl": 5 / step, "a_long_name_of_an_objective": 1.0})
        if step == 30:
            progress._live and progress._live.refresh()
            print("train: a worker died", file=sys.stderr)
    progress._live and progress._live.refresh()
"""


def seen_on_a_terminal(kind: str, columns: int) -> str:
    """What a terminal of a kind gets from a program that shows progress on it."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen([sys.executable, "-c", RUN], stderr=terminal, env={**kept, "TERM": kind})
    os.close(terminal)
    parts = []
    try:
        while part := os.read(controller, 65536):
            parts.append(part)
    except OSError:
        pass  # the way in which Linux says that nobody writes any more
    assert process.wait(timeout=60) == 0
    os.close(controller)
    return b"".join(parts).decode()


def test_a_real_terminal_has_a_screen_of_its_width_and_one_line_in_the_end() -> None:
    seen = seen_on_a_terminal("xterm-256color", 50)
    assert "\x1b[1A" in seen, "the cursor never went up: nothing was drawn in place"
    drawn, _, after = seen.rpartition("\x1b[2K")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 50
    for part in ("60/80 steps", "690 tokens/s", "left", "forward_kl", "▁", "train: a worker died"):
        assert any(part in line for line in lines), part
    assert re.match(r"\s*(\x1b\[\?25h)?\s*train student: 60/80 steps", after), after


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    seen = seen_on_a_terminal("dumb", 50)
    assert "\x1b" not in seen
    assert seen.startswith("train student: 0/80 steps, starting")
    assert "train student: 1/80 steps" in seen
