"""The parts of the page that show how the run went: curves, rates, worker-hours, and what the cache holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from llmdistill.config.weighting import metric_name
from llmdistill.observe.report.facts import CacheFacts, RunFacts
from llmdistill.observe.report.svg import Series, histogram, line_chart
from llmdistill.observe.report.teachers import asked_sections
from llmdistill.observe.report.words import NAMES, STYLES

_TITLES = {
    "forward_kl": "KL(teacher ‖ student), nats",
    "sequence_ce": "cross-entropy on responses, nats",
    "grad_norm": "gradient norm, before clipping",
}


def curve_title(key: str) -> str:
    """What a column of metrics.jsonl is called above its curve."""
    for text in ("teacher", "student"):
        if key.endswith(f"_{text}"):
            return f"{curve_title(key.removesuffix(f'_{text}'))}, on the {text}’s text"
    return _TITLES.get(key, key.replace("_", " "))


def objective_names(run: RunFacts) -> list[str]:
    """What the columns of the run's objectives begin with in metrics.jsonl."""
    return [metric_name(item["type"], item.get("text", "all")) for item in run.config["objectives"]]


def curves(run: RunFacts) -> list[Markup]:
    """Every objective, the gradient norms and the rates over the optimizer steps, for each trained model."""
    names = dict.fromkeys([*objective_names(run), "sequence_ce"])
    wanted = [(name, curve_title(name)) for name in names]
    wanted += [(f"{name}_grad_norm", f"gradient norm of {name} at the logits") for name in names]
    wanted += [(name, curve_title(name)) for name in ("grad_norm", "learning_rate", "tokens_per_second")]
    charts = []
    for key, title in wanted:
        lines = [
            Series(NAMES.get(name, name), STYLES.get(name, 4), points)
            for name, steps in run.trainings.items()
            if (points := [(line["step"], line[key]) for line in steps if key in line])
        ]
        if lines:
            charts.append(line_chart(title, "optimizer step", lines, y_from_zero=key == "tokens_per_second"))
    return charts


def cache_charts(cache: CacheFacts) -> list[Markup]:
    """Captured mass, entropy and length of the responses."""
    charts = []
    if len(cache.mass_R):
        edges = np.linspace(0, 1, 21)
        charts.append(histogram("Mass of the kept tokens", "share of the distribution", *_counts(cache.mass_R, edges)))
    if len(cache.entropy_R):
        edges = np.linspace(0, max(float(np.ceil(cache.entropy_R.max())), 1.0), 25)
        charts.append(histogram("Entropy of the teacher", "nats", *_counts(cache.entropy_R, edges)))
    if len(cache.rows_S):
        longest = max(int(cache.rows_S.max()), 1)
        edges = np.linspace(0, longest + 1, min(longest + 2, 25))
        charts.append(histogram("Supervised tokens of a record", "tokens", *_counts(cache.rows_S, edges)))
    return charts


def _counts(values: np.ndarray, edges: np.ndarray) -> tuple[list[float], list[int]]:
    return edges.tolist(), np.histogram(values, edges)[0].tolist()


def training_rows(run: RunFacts) -> list[dict[str, Any]]:
    """Steps, tokens, rate, wait for data and worker-hours of each training."""
    workers = run.config["train"]["workers"]
    rows = []
    for name, lines in run.trainings.items():
        seconds = sum(line["step_seconds"] for line in lines)
        # With train.logging_steps above 1 only some steps are in the file; they stand for all.
        total = seconds * lines[-1]["step"] / len(lines)
        tokens = sum(line["tokens"] for line in lines)
        rows.append(
            {
                "name": NAMES.get(name, name),
                "steps": lines[-1]["step"],
                "tokens": round(tokens * lines[-1]["step"] / len(lines)),
                "seconds": total,
                "rate": tokens / seconds,
                "wait": sum(line["data_wait_seconds"] for line in lines) / seconds,
                "worker_hours": total * workers / 3600,
            }
        )
    return rows


def costs(run: RunFacts, price: float | None) -> dict[str, Any]:
    """Worker-hours: of the trainings by their steps, of the teacher by the time of its stage.

    Args:
        run: the run.
        price: of a worker for an hour; None leaves the cost out.

    """
    teachers = asked_sections(run.config)
    train = sum(row["worker_hours"] for row in training_rows(run))
    generate = run.seconds.get("generate")
    # `auto` is as many replicas as the cluster holds, which the run's files do not say.
    counted = all(isinstance(teacher["replicas"], int) for teacher in teachers.values())
    worked = {name: run.fleets.get(name, 0.0) for name in teachers}
    # Where metrics say nothing, each had an equal part of the stage.
    worked = worked if any(worked.values()) else dict.fromkeys(teachers, 1.0)
    width = sum(
        worked[name] * teacher["tensor_parallel"] * (teacher["replicas"] if counted else 1)
        for name, teacher in teachers.items()
    ) / sum(worked.values())
    hours = None if generate is None else generate * width / 3600
    known = train + (hours or 0)
    return {
        "train": train,
        "generate": hours,
        "replicas": counted,
        "known": known,
        "price": price,
        "cost": None if price is None else known * price,
    }
