"""Rounds on a run's page."""

import json

from llmdistill.observe.report.page import write_report
from tests.observe.conftest import MakeRun


def test_each_round_has_a_line(make_run: MakeRun) -> None:
    run = make_run(rounds={"count": 2, "steps": 3, "prompts": 5})
    facts = {"student_step": 0, "on_policy": 0.5, "records": 1234, "written_tokens": 56789, "rollout_seconds": 7.89}
    facts |= {"stage": "round", "score_seconds": 2.5, "wait_seconds": 10.4}
    with run.metrics.open("a") as stream:
        stream.write("".join(json.dumps(facts | {"round": number}) + "\n" for number in range(2)))
    page = write_report(run).read_text()
    for text in ("<h3>Rounds</h3>", "1,234", "56,789", "7.9 s", "10.4 s", "2 rounds of 3 steps"):
        assert text in page
    assert "<h3>Rounds</h3>" not in write_report(make_run("without")).read_text()
