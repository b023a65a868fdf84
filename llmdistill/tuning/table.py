"""What came of the trials, as one document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmdistill.tuning.outcome import Outcome
from llmdistill.tuning.trial import Trial


def tune_document(
    trials: Sequence[Trial], settings: Mapping[int, dict[str, Any]], outcomes: Mapping[int, Outcome]
) -> dict[str, Any]:
    """The table, best value first; trials that failed come last.

    The winner is the best of those that took the whole budget: the learning rate of the others was still high.

    Args:
        trials: all of them, the one with the settings as configured first.
        settings: number of a trial → searched key → value.
        outcomes: number of a trial → its outcome.

    """
    lines = [_line(trial, settings[trial.number], outcomes[trial.number]) for trial in trials]
    whole = [line for line in lines if outcomes[line["trial"]].end == "whole"]
    return {
        "metric": trials[0].metric,
        "default": trials[0].number,
        "winner": min(whole, key=_by_value)["trial"] if whole else None,
        "trials": sorted(lines, key=_by_value),
    }


def _line(trial: Trial, settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    last = outcome.measured[-1] if outcome.measured and outcome.end != "failed" else None
    return {
        "trial": trial.number,
        "settings": settings,
        "value": last.value if last else None,
        "steps": outcome.measured[-1].step if outcome.measured else 0,
        "budget_steps": trial.points[-1][1],
        "stopped_early": outcome.end == "early",
        "failed": outcome.reason or None,
        "seconds": round(sum(point.seconds for point in outcome.measured), 3),
        "measured": [{"step": point.step, "value": point.value} for point in outcome.measured],
    }


def _by_value(line: dict[str, Any]) -> tuple[float, int]:
    return math.inf if line["value"] is None else line["value"], line["trial"]


def table_rows(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells for people."""
    keys = list(document["trials"][0]["settings"])
    columns = ["trial", document["metric"], "steps", "", *keys]
    rows = []
    for line in document["trials"]:
        number, value = line["trial"], line["value"]
        words = {document["winner"]: "best", document["default"]: "as configured"}
        note = "failed" if line["failed"] else "stopped early" if line["stopped_early"] else words.get(number, "")
        if number == document["winner"] == document["default"]:
            note = "best, as configured"
        rows.append(
            [
                str(number),
                "" if value is None else f"{value:.4f}",
                f"{line['steps']}/{line['budget_steps']}",
                note,
                *(_cell(line["settings"][key]) for key in keys),
            ]
        )
    return columns, rows


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
