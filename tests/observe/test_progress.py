from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llmdistill.observe.progress import Progress, sparkline


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


def test_a_terminal_has_one_screen_with_stages_rates_values_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, color_system=None)
    with Progress("train student", 10, "steps", console=console) as progress:
        for step in range(1, 6):
            progress.update(step, "95 tokens/s", {"forward_kl": 5.0 - step, "grad_norm": 1.0})
        progress._live.refresh()
        screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "generate  →  train  →  export  →  evaluate  →  report" in screen
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
