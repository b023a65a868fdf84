"""The page for people: one self-contained HTML file, for one run or for several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from llmdistill.cache.storage import commit_bytes
from llmdistill.observe.report import results, training, words
from llmdistill.observe.report.comparison import comparison
from llmdistill.observe.report.facts import RunFacts, read_run
from llmdistill.observe.report.teachers import teacher_rows
from llmdistill.observe.run_folder import RunFolder


def write_report(folder: RunFolder, output: Path | None = None, price: float | None = None) -> Path:
    """Write the page of one run.

    Args:
        folder: of the run.
        output: the file; None: report.html in the run's folder.
        price: of a worker for an hour, for the cost.

    Raises:
        DataError: the run has no evaluation yet, or one of another version.

    """
    output = output or folder.report
    commit_bytes(output, _render("run.html.jinja", **run_values(read_run(folder), price)).encode())
    return output


def write_comparison(folders: Sequence[RunFolder], output: Path) -> Path:
    """Write the page that compares runs.

    Raises:
        DataError: as `write_report`.

    """
    commit_bytes(output, _render("comparison.html.jinja", **comparison([read_run(item) for item in folders])).encode())
    return output


def run_values(run: RunFacts, price: float | None) -> dict[str, Any]:
    """What the templates of one run show."""
    evaluation = run.evaluation
    return {
        "title": run.title,
        "run": run,
        "evaluation": evaluation,
        "config": run.config,
        "provenance": run.provenance,
        "index": run.index,
        "names": words.NAMES,
        "verdict": words.verdict(evaluation),
        "table": results.results_table(evaluation),
        "methods": results.methods_text(evaluation),
        "interval_charts": results.interval_charts(evaluation),
        "group_tables": results.group_tables(evaluation),
        "calibration": results.calibration_chart(evaluation),
        "samples": results.samples(evaluation),
        "generation": results.generation_table(evaluation),
        "harness": results.harness_table(evaluation),
        "speed": results.speed_rows(evaluation),
        "curves": training.curves(run),
        "trainings": training.training_rows(run),
        "costs": training.costs(run, price),
        "cache_charts": training.cache_charts(run.cache),
        "teachers": teacher_rows(run.config, run.index),
        "student": words.student_words(run.config["student"]),
        "objectives": words.objectives_words(run.config["objectives"]),
        "config_text": json.dumps(run.config, indent=1, ensure_ascii=False),
    }


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
