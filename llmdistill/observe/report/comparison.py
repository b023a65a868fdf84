"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from llmdistill.evaluation.methods import METRICS
from llmdistill.observe.report.facts import RunFacts
from llmdistill.observe.report.svg import STYLE_COUNT, Estimate, Series, dot_plot, line_chart
from llmdistill.observe.report.training import curve_title, objective_names, training_rows
from llmdistill.observe.report.words import LABELS, best, figure, span, verdict

_SECTIONS = ("prompts", "teacher", "teachers", "capture", "student", "objectives", "train")


def comparison(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """What the template of a comparison shows."""
    names = _distinct_names(runs)
    metrics = [metric for metric in METRICS if any(metric in run.evaluation["methods"] for run in runs)]
    return {
        "title": "Comparison of runs",
        "names": names,
        "verdicts": [(name, verdict(run.evaluation)) for name, run in zip(names, runs, strict=True)],
        "same_records": len({run.evaluation["held_out_fingerprint"] for run in runs}) == 1,
        "rows": [_row(metric, runs, names) for metric in metrics],
        "differences": differences([run.config for run in runs]),
        "charts": _charts(runs, names),
        "trainings": [
            (name, next(row for row in training_rows(run) if row["name"] == "distilled student"))
            for name, run in zip(names, runs, strict=True)
            if "student" in run.trainings
        ],
        "commands": [(name, run.provenance["command"]) for name, run in zip(names, runs, strict=True)],
    }


def differences(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings that are not equal in all runs: the key, and the value of each."""
    flat = [_flat({section: config[section] for section in _SECTIONS if section in config}) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = [(key, [str(values.get(key, "–")) for values in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            key: leaf
            for name, child in items
            for key, leaf in _flat(child, f"{path}.{name}" if path else str(name)).items()
        }
    return {path: value}


def _distinct_names(runs: Sequence[RunFacts]) -> list[str]:
    titles = [run.title for run in runs]
    return [
        title if titles.count(title) == 1 else f"{title} ({number})" for number, title in enumerate(titles, start=1)
    ]


def _row(metric: str, runs: Sequence[RunFacts], names: Sequence[str]) -> dict[str, Any]:
    students = [run.evaluation["models"]["student"] for run in runs]
    winner = best(metric, [values.get(metric) for values in students])
    return {
        "metric": metric,
        "label": LABELS[metric][0],
        "note": LABELS[metric][1],
        "cells": [
            {
                "run": name,
                "value": figure(metric, values.get(metric)),
                "interval": span(metric, values["intervals"].get(metric)),
                "best": values.get(metric) is not None and values[metric] == winner,
            }
            for name, values in zip(names, students, strict=True)
        ],
    }


def _charts(runs: Sequence[RunFacts], names: Sequence[str]) -> list[Markup]:
    charts = []
    rows = []
    for name, run in zip(names, runs, strict=True):
        baseline = run.evaluation["comparison"]["baseline"]
        estimates = [
            Estimate(style, values["kl"], values["intervals"]["kl"])
            for style, values in ((1, run.evaluation["models"][baseline]), (0, run.evaluation["models"]["student"]))
            if values["kl"] is not None
        ]
        if estimates:
            rows.append((name, estimates))
    if rows:
        legend = [("baseline", 1), ("distilled student", 0)]
        charts.append(dot_plot("KL(teacher ‖ model)", "nats a token, with 95 % intervals", rows, legend))
    names_of_objectives = dict.fromkeys(name for run in runs for name in objective_names(run))
    for key in [*names_of_objectives, "grad_norm"]:
        lines = [
            Series(name, number % STYLE_COUNT, points)
            for number, (name, run) in enumerate(zip(names, runs, strict=True))
            if (points := [(line["step"], line[key]) for line in run.trainings.get("student", []) if key in line])
        ]
        if lines:
            charts.append(line_chart(curve_title(key), "optimizer step", lines))
    return charts
