"""The parts of the page that show what evaluation.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from llmdistill.evaluation.methods import METRICS
from llmdistill.observe.report.svg import Estimate, Series, dot_plot, reliability_chart
from llmdistill.observe.report.words import LABELS, NAMES, STYLES, best, figure, span

_GROUP_TITLES = {
    "source": "KL by source",
    "position": "KL by position in the response",
    "entropy": "KL by the teacher’s entropy, nats",
}
_LEVELS = (0.5, 1.5, 3.0)
"""Divergences in nats from which on a token is marked faintly, clearly, strongly."""


def results_table(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric, with a cell for each model, the teacher, and the recovery."""
    models, comparison = evaluation["models"], evaluation["comparison"]
    ordered = sorted(models.items(), key=lambda item: STYLES[item[0]])  # the student first: a phone shows two columns
    rows = []
    for metric in METRICS:
        if metric not in evaluation["methods"]:
            continue
        winner = best(metric, [values[metric] for values in models.values()])
        recovery = comparison["recovery"].get(metric)
        rows.append(
            {
                "metric": metric,
                "label": LABELS[metric][0],
                "note": LABELS[metric][1],
                "cells": [
                    {
                        "model": name,
                        "value": figure(metric, values[metric]),
                        "interval": span(metric, values["intervals"][metric]),
                        "best": values[metric] == winner,
                    }
                    for name, values in ordered
                ],
                "teacher": _of_teacher(metric, evaluation),
                "recovery": None
                if recovery is None or recovery["value"] is None
                else f"{recovery['value'] * 100:.0f} %",
                "recovery_interval": "" if recovery is None else _percent_span(recovery["interval"]),
            }
        )
    return rows


def _of_teacher(metric: str, evaluation: dict[str, Any]) -> str:
    if metric in ("kl", "reverse_kl"):
        return "0"
    if metric in ("perplexity", "bits_per_byte", "expected_calibration_error"):
        return figure(metric, evaluation["teacher"][metric])
    return "100 %"


def _percent_span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0] * 100:.0f} … {interval[1] * 100:.0f}"


def methods_text(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """How each metric was computed, equal methods joined; and why others were not."""
    by_method: dict[str, list[str]] = {}
    for metric in METRICS:
        how, why = evaluation["methods"].get(metric), evaluation["undefined"].get(metric)
        if how is None and why is None:
            continue  # an evaluation that was written before there was such a metric
        text = how if how else f"not defined here: {why}"
        by_method.setdefault(text, []).append(LABELS[metric][0])
    return [(", ".join(names), text) for text, names in by_method.items()]


def interval_charts(evaluation: dict[str, Any]) -> list[Markup]:
    """KL of all groups with intervals, for baseline and student; empty where KL is not defined."""
    if "kl" not in evaluation["methods"]:
        return []
    names = [evaluation["comparison"]["baseline"], "student"]
    legend = [(NAMES[name], STYLES[name]) for name in names]
    charts = []
    for kind, title in _GROUP_TITLES.items():
        groups = evaluation["models"]["student"]["by"][kind]
        if not groups or len(groups) == 1:
            continue
        rows = [
            (
                _short(group),
                [_estimate(evaluation["models"][name]["by"][kind][group], STYLES[name]) for name in names],
            )
            for group in groups
        ]
        charts.append(dot_plot(title, "nats a token, with 95 % intervals", rows, legend))
    return charts


def _estimate(values: dict[str, Any], style: int) -> Estimate:
    interval = values["intervals"]["kl"]
    return Estimate(style, values["kl"], None if interval is None else (interval[0], interval[1]))


def _short(name: str) -> str:
    return name if len(name) <= 24 else "…" + name[-23:]


def group_tables(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The same in figures: for each kind of group its rows for baseline and student."""
    names = [evaluation["comparison"]["baseline"], "student"]
    metrics = [name for name in ("kl", "top1_agreement", "perplexity") if name in evaluation["methods"]]
    tables = []
    for kind, title in _GROUP_TITLES.items():
        groups = evaluation["models"]["student"]["by"][kind]
        if not groups:
            tables.append({"title": title, "reason": evaluation["groups_undefined"].get(kind), "rows": []})
            continue
        rows = [
            {
                "name": group,
                "rows": values["rows"],
                "cells": [
                    figure(metric, evaluation["models"][name]["by"][kind][group][metric])
                    for metric in metrics
                    for name in names
                ],
            }
            for group, values in groups.items()
        ]
        heads = [f"{LABELS[metric][0]}, {NAMES[name]}" for metric in metrics for name in names]
        tables.append({"title": title, "reason": None, "heads": heads, "rows": rows})
    return tables


def calibration_chart(evaluation: dict[str, Any]) -> Markup:
    """The reliability curves of teacher, baseline and student; bins of fewer than 10 rows are left out."""
    curves = []
    for name in (evaluation["comparison"]["baseline"], "student", "teacher"):
        bins = (evaluation["teacher"] if name == "teacher" else evaluation["models"][name])["reliability"]
        points = [(item["confidence"], item["accuracy"]) for item in bins or [] if item["rows"] >= 10]
        if points:
            curves.append(Series(NAMES[name], STYLES[name], points))
    return reliability_chart("Right as often as sure?", curves)


def samples(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Records token by token, for baseline and student; each token with its level 0 … 3 and its figure."""
    names = [evaluation["comparison"]["baseline"], "student"]
    shown = []
    for sample in evaluation["samples"]:
        measure = "kl" if all(None not in sample["kl"].get(name, [None]) for name in names) else "cross_entropy"
        models = []
        for name in names:
            values = sample[measure][name]
            tokens = [
                {"text": text, "level": sum(value >= level for level in _LEVELS), "value": f"{value:.2f}"}
                for text, value in zip(sample["tokens"], values, strict=True)
            ]
            mean = sum(values) / len(values)
            models.append({"name": NAMES[name], "tokens": tokens, "mean": f"{mean:.2f}"})
        shown.append(
            {
                "prompt": sample["prompt"],
                "response": "".join(sample["tokens"]),
                "finish_reason": sample["finish_reason"],
                "measure": "KL" if measure == "kl" else "cross-entropy",
                "models": models,
            }
        )
    return shown


def generation_table(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Answers against references; None where none were asked for."""
    found = evaluation.get("generation")
    if found is None:
        return None
    rows = []
    for name, values in found["models"].items():
        for manner in ("greedy", "sampled"):
            scores = values[manner]
            cells = [
                {"value": figure(metric, scores[metric]), "interval": span(metric, scores["intervals"][metric])}
                for metric in ("rouge_l", "exact_match", "gsm8k")
            ]
            rows.append({"name": NAMES[name], "manner": manner, "cells": cells})
    return {**found, "rows": rows}


def harness_table(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of lm-eval: a row for each task and metric, a cell for each model."""
    found = evaluation.get("lm_eval")
    if found is None:
        return []
    rows = []
    for task, figures in found["models"]["student"].items():
        for key in figures:
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or "," not in key:
                continue
            error = f"{metric}_stderr,{chosen}"
            cells = [
                (f"{values[task][key]:.4g}", f"± {values[task][error]:.2g}" if error in values[task] else "")
                for values in found["models"].values()
            ]
            rows.append({"task": task, "metric": metric, "cells": cells})
    return [{"names": [NAMES[name] for name in found["models"]], "rows": rows, "limit": found["limit"]}]


def speed_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Teacher beside student; empty where no speed was measured."""
    found = evaluation.get("speed")
    if found is None:
        return []
    student, teacher = found["student"], found["teacher"]
    kinds = (
        ("Parameters", "parameters", 1e6, "M"),
        ("Weight files", "bytes", 1e6, "MB"),
        ("Decoding, batch 1", "tokens_per_second", 1, "tokens/s"),
        ("Time to first token", "seconds_to_first_token", 1e-3, "ms"),
        ("Peak memory of the process", "peak_memory_bytes", 1e6, "MB"),
    )
    return [
        {
            "label": label,
            "student": f"{student[key] / unit:,.1f} {name}",
            "teacher": "–" if teacher is None else f"{teacher[key] / unit:,.1f} {name}",
            "ratio": "–" if teacher is None else f"{student[key] / teacher[key]:.2f}",
        }
        for label, key, unit, name in kinds
    ]
