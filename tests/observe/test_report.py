from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmdistill.cli.main import cli
from llmdistill.errors import DataError
from llmdistill.observe.report.comparison import differences
from llmdistill.observe.report.page import write_report
from llmdistill.observe.report.words import figure, span, verdict
from llmdistill.observe.run_folder import RunFolder
from tests.observe.conftest import MakeRun


class Cells(HTMLParser):
    """Text of every cell with data attributes: (metric, model or run) → [value, interval]."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], list[str]] = {}
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "data-metric" in values:
            key = (str(values["data-metric"]), str(values.get("data-model") or values.get("data-run")))
            self._cell = self.found.setdefault(key, [])

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None and data.strip():
            self._cell.append(data.strip())


def require_figures_of(page: str, evaluation: dict[str, Any]) -> None:
    """Every figure of the models in the page is that of evaluation.json, and all are there."""
    cells = Cells(page).found
    for name, values in evaluation["models"].items():
        for metric in evaluation["methods"]:
            shown = cells[metric, name]
            assert shown == [figure(metric, values[metric]), span(metric, values["intervals"][metric])], (metric, name)


def test_figures_are_those_of_the_evaluation(make_run: MakeRun) -> None:
    run = make_run()
    page = write_report(run).read_text()
    evaluation = json.loads(run.evaluation.read_text())
    require_figures_of(page, evaluation)
    assert f"{evaluation['models']['student']['kl']:.4f}" in page
    assert verdict(evaluation) in page


def test_the_page_needs_nothing_from_elsewhere(make_run: MakeRun) -> None:
    page = write_report(make_run()).read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", page)
    assert "default-src 'none'" in page


def test_text_of_prompts_and_tokens_is_shown_and_not_run(make_run: MakeRun) -> None:
    page = write_report(make_run()).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;Why?&lt;/b&gt;" in page
    assert "a &lt;teacher&gt;" in page


def test_the_page_says_what_was_done(make_run: MakeRun) -> None:
    run = make_run()
    page = write_report(run, price=3.0).read_text()
    assert "2 × the same prompt as an earlier row" in page
    assert "1 × not JSON" in page
    assert "llmdistill run trial.yaml" in page
    assert "0 ← 0, 1 ← 4" in page  # the layer map
    assert "1 × forward_kl" in page and "0.1 × sequence_ce" in page
    # 2 trainings × 40 steps × 2 s × 2 workers, and 1,800 s of 2 replicas: 0.089 + 1 hours, at 3 each.
    assert "Training: 0.089 worker-hours. Teacher: 1.000 worker-hours." in page
    assert "At 3.00 an hour that is 3.27." in page
    for title in ("gradient norm, before clipping", "Mass of the kept tokens", "Supervised tokens of a record"):
        assert title in page


@pytest.mark.parametrize(
    ("student", "baseline", "paired", "words"),
    [
        ((1.0, [0.9, 1.1]), (2.0, [1.8, 2.2]), [-1.2, -0.8], "closer to its teacher than SFT on the same responses"),
        ((3.0, [2.9, 3.1]), (2.0, [1.8, 2.2]), [0.8, 1.2], "farther from its teacher than SFT"),
        ((1.9, [1.7, 2.1]), (2.0, [1.8, 2.2]), [-0.3, 0.1], "cannot be told from SFT on the same responses"),
        (
            (1.9, [1.7, 2.1]),
            (2.0, [1.8, 2.2]),
            [-0.15, -0.05],
            "overlap (KL 1.9 against 2 nats), though record by record",
        ),
        ((1.9, None), (2.0, None), None, "too few held-out records"),
    ],
)
def test_the_verdict_is_one_sentence_and_claims_no_more_than_the_intervals(
    student: tuple, baseline: tuple, paired: list[float] | None, words: str
) -> None:
    def model(figures: tuple) -> dict[str, Any]:
        return {"kl": figures[0], "perplexity": 9.0, "intervals": {"kl": figures[1], "perplexity": None}}

    sentence = verdict(
        {
            "models": {"sft": model(baseline), "student": model(student)},
            "comparison": {"baseline": "sft", "differences": {"kl": {"value": 0, "interval": paired}}},
        }
    )
    assert words in sentence
    assert len(re.findall(r"\.(?:\s|$)", sentence)) == 1
    assert ("do not overlap" in sentence) == (student[1] is not None and student[0] != 1.9)


def test_without_kl_the_verdict_speaks_of_perplexity(make_run: MakeRun) -> None:
    run = make_run()
    evaluation = json.loads(run.evaluation.read_text())
    for values in evaluation["models"].values():
        values["kl"] = None
        for groups in values["by"].values():
            for group in groups.values():
                del group["kl"]
    evaluation["undefined"]["kl"] = "the engine told no entropy"
    for part in ("methods", "kl"), ("comparison", "kl"):
        evaluation[part[0]].pop(part[1], None)
    evaluation["samples"][0]["kl"] = {}
    run.evaluation.write_text(json.dumps(evaluation))
    page = write_report(run).read_text()
    assert "perplexity" in verdict(evaluation)
    assert "not defined here: the engine told no entropy" in page
    assert "cross-entropy of each token" in page


def test_runs_side_by_side(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one")
    two = make_run("two", student_kl=0.9, seed=1, train={"workers": 2, "lr": 0.002})
    output = tmp_path / "both.html"
    answer = CliRunner().invoke(cli, ["report", str(one.path), str(two.path), "--output", str(output)])
    assert answer.exit_code == 0, answer.output
    page = output.read_text()
    cells = Cells(page).found
    for name, run in (("one", one), ("two", two)):
        student = json.loads(run.evaluation.read_text())["models"]["student"]
        assert cells["kl", name] == [figure("kl", student["kl"]), span("kl", student["intervals"]["kl"])]
    assert "train.lr" in page and "train.epochs" not in page
    assert "different held-out records" not in page
    evaluation = json.loads(two.evaluation.read_text())
    two.evaluation.write_text(json.dumps(evaluation | {"held_out_fingerprint": "beef"}))
    CliRunner().invoke(cli, ["report", str(one.path), str(two.path), "--output", str(output)])
    assert "different held-out records" in output.read_text()


def test_differences_are_found_at_any_depth() -> None:
    config = {name: {} for name in ("prompts", "teacher", "capture", "student", "train")}
    first = config | {"objectives": [{"type": "forward_kl", "weight": 1.0}]}
    second = copy.deepcopy(first)
    second["objectives"][0]["weight"] = 0.5
    second["objectives"].append({"type": "sequence_ce"})
    assert differences([first, second]) == [
        ("objectives.0.weight", ["1.0", "0.5"]),
        ("objectives.1.type", ["–", "sequence_ce"]),
    ]


def test_an_evaluation_of_an_earlier_version_is_refused_with_the_way_out(make_run: MakeRun) -> None:
    run = make_run()
    run.evaluation.write_text(json.dumps({"models": {"student": {"kl": 1.0}}}))
    with pytest.raises(DataError, match="llmdistill evaluate CONFIG"):
        write_report(run)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation\.json: is missing"):
        write_report(RunFolder(tmp_path))
