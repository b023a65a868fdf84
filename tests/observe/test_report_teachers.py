"""The teachers of a run on its page."""

from __future__ import annotations

import json

import pytest

from llmdistill.observe.report.facts import read_run
from llmdistill.observe.report.page import write_report
from llmdistill.observe.report.teachers import fleet_seconds, teacher_rows
from llmdistill.observe.report.training import costs
from tests.observe.conftest import MakeRun

TWO = {
    "prompts": {"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl", "teachers": {"code": 1}}], "held_out": 0.5},
    "teachers": {"code": {"model": "a <coder>", "replicas": 3, "tensor_parallel": 2}},
}


def test_seconds_add_up_over_fleets_and_calls() -> None:
    lines = [{"seconds": 10.0}, {"seconds": 30.0}, {"teacher": "code", "seconds": 5.0}, {"seconds": 8.0},
             {"teacher": "code", "seconds": 7.0}, {"seconds": 9.0}]  # fmt: skip
    assert fleet_seconds(lines) == {"teacher": 39.0, "code": 7.0}


def test_the_page_tells_the_teachers_apart(make_run: MakeRun) -> None:
    run = make_run(**TWO)
    index = json.loads((run.cache / "index.json").read_text())
    (capture,) = index["captures"]
    other = {**capture, "name": "code", "records": 7, "tokens": 99, "spec": {**capture["spec"], "teacher": "f00"}}
    index["captures"] = [{**capture, "name": "teacher"}, other]
    (run.cache / "index.json").write_text(json.dumps(index))
    page = write_report(run).read_text()
    assert "Teachers: a &lt;teacher&gt;, a &lt;coder&gt;." in page
    assert "code 7 records, 99 tokens" in page
    assert "<code>f00</code>" in page
    assert "answered no prompt" not in page


def test_a_teacher_that_only_gave_its_tokenizer_is_said_to_have_answered_nothing(make_run: MakeRun) -> None:
    sources = {"sources": [{"path": "b.jsonl", "teachers": {"code": 1}}], "held_out": 0.5}
    run = make_run(prompts=sources, teachers=TWO["teachers"])
    facts = read_run(run)
    assert [row["name"] for row in teacher_rows(facts.config, facts.index)] == ["code"]
    page = write_report(run).read_text()
    assert "Teacher: a &lt;coder&gt;." in page
    assert "(answered no prompt)" in page


def test_hours_count_each_fleet_by_its_own_size(make_run: MakeRun) -> None:
    run = make_run(**TWO)
    fleets = [
        {"stage": "generate", "teacher": name, "seconds": seconds} for name, seconds in (("teacher", 30), ("code", 90))
    ]
    with run.metrics.open("a") as stream:
        stream.write("".join(json.dumps(line) + "\n" for line in fleets))
    facts = read_run(run)
    # A quarter of the stage on 2 replicas, the rest on 3 of 2 each.
    assert costs(facts, None)["generate"] == pytest.approx(facts.seconds["generate"] * (2 / 4 + 6 * 3 / 4) / 3600)
