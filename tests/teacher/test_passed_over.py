"""The list of requests that are not asked again, where several teachers write it in turn."""

from pathlib import Path

from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.filters import fingerprint
from llmdistill.teacher.fleet import _without_passed_over
from llmdistill.teacher.fleet_report import FleetReport
from llmdistill.teacher.passed_over import PassedOver, read_passed_over, write_passed_over
from llmdistill.types import Request

FIRST = TeacherConfig.model_validate({"model": "a", "filters": {"unfinished": "drop"}})
SECOND = TeacherConfig.model_validate({"model": "b"})
REQUESTS = [Request(number.to_bytes(16, "big"), (1, 2), f"a:{number}") for number in range(4)]


def test_a_teacher_with_other_filters_keeps_what_those_of_another_dropped(tmp_path: Path) -> None:
    dropped = PassedOver(REQUESTS[0].key, RejectedRow("a:0", "filtered"), fingerprint(FIRST.filters))
    deadly = PassedOver(REQUESTS[2].key, RejectedRow("a:2", "quarantined"))
    write_passed_over(tmp_path, [dropped, deadly])
    report = FleetReport()
    assert _without_passed_over(REQUESTS[2:], SECOND, tmp_path, report) == REQUESTS[3:]
    write_passed_over(tmp_path, report.passed_over)
    assert read_passed_over(tmp_path) == [dropped, deadly]
    assert (len(report.rejected), len(report.filtered)) == (1, 0)
    again = FleetReport()
    assert _without_passed_over(REQUESTS[:2], FIRST, tmp_path, again) == REQUESTS[1:2]
    assert len(again.filtered) == 1


def test_other_filters_of_the_same_teacher_ask_again(tmp_path: Path) -> None:
    dropped = PassedOver(REQUESTS[0].key, RejectedRow("a:0", "filtered"), "of other filters")
    write_passed_over(tmp_path, [dropped])
    report = FleetReport()
    assert _without_passed_over(REQUESTS[:2], FIRST, tmp_path, report) == REQUESTS[:2]
    assert report.passed_over == []
