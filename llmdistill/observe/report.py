"""The page for people: one self-contained HTML file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jinja2

from llmdistill.cache.storage import commit_bytes
from llmdistill.errors import DataError
from llmdistill.observe.run_folder import RunFolder
from llmdistill.trainer.metrics import read_metrics

_NAMES = {
    "untrained": "student before training",
    "sft": "baseline: SFT on the same responses",
    "student": "distilled student",
}
_OBJECTIVES = {"forward_kl": "KL(teacher ‖ student), nats", "sequence_ce": "cross-entropy on responses, nats"}
_CURVES = (
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens per second"),
)
_STYLES = {"student": ("#0b57a4", "-"), "sft": ("#b3540a", "--")}


def write_report(folder: RunFolder) -> Path:
    """Write report.html from the files of a run's folder.

    Raises:
        DataError: the run has no evaluation yet.

    """
    try:
        evaluation = json.loads(folder.evaluation.read_text())
        config = json.loads(folder.config.read_text())
        provenance = json.loads(folder.provenance.read_text())
        index = json.loads((folder.cache / "index.json").read_text())
    except FileNotFoundError as error:
        raise DataError("is missing", where=str(error.filename), fix="run `llmdistill run CONFIG` first") from None
    metrics = read_metrics(folder.metrics)
    types = dict.fromkeys([*(item["type"] for item in config["objectives"]), "sequence_ce"])
    curves = [(name, _OBJECTIVES.get(name, name)) for name in types] + list(_CURVES)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.jinja").render(
        title=Path(config["output"]).name,
        verdict=_verdict(evaluation["models"]),
        rows=[{"name": _NAMES.get(name, name), **values} for name, values in evaluation["models"].items()],
        evaluation=evaluation,
        config=config,
        provenance=provenance,
        index=index,
        curves=[svg for key, label in curves if (svg := _curve(metrics, key, label))],
        objectives=" + ".join(f"{item['weight']:g} × {item['type']}" for item in config["objectives"]),
        rejected=len(folder.rejected.read_text().splitlines()) if folder.rejected.is_file() else 0,
        training=_training(metrics),
    )
    commit_bytes(folder.report, page.encode())
    return folder.report


def _verdict(models: dict[str, dict[str, float]]) -> str:
    student = models["student"]["kl"]
    parts = [f"The distilled student is {student:.2f} nats from its teacher"]
    if "untrained" in models:
        parts.append(f"{student / models['untrained']['kl']:.0%} of the distance before training")
    if "sft" in models:
        ratio = student / models["sft"]["kl"]
        parts.append(f"{ratio:.0%} of the distance of plain fine-tuning on the same responses")
    return ", ".join(parts) + "."


def _training(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    summaries = []
    for name in dict.fromkeys(line["model"] for line in metrics):
        lines = [line for line in metrics if line["model"] == name]
        seconds = sum(line["step_seconds"] for line in lines)
        tokens = sum(line["tokens"] for line in lines)
        summaries.append(
            {
                "name": _NAMES.get(name, name),
                "steps": lines[-1]["step"],
                "tokens": tokens,
                "seconds": seconds,
                "rate": tokens / seconds,
                "wait": sum(line["data_wait_seconds"] for line in lines) / seconds,
            }
        )
    return summaries


def _curve(metrics: list[dict[str, Any]], key: str, label: str) -> str | None:
    """An inline SVG with one line per trained model; None where nothing was recorded under `key`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(4.6, 2.6), layout="constrained")
    for name, (color, style) in _STYLES.items():
        points = [(line["step"], line[key]) for line in metrics if line["model"] == name and key in line]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linestyle=style, label=_NAMES[name], linewidth=1.4)
    drawn = bool(axes.lines)
    axes.set(xlabel="optimizer step", title=label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False, fontsize=7.5)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :] if drawn else None
