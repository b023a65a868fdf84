import pytest

from llmdistill.types import student_source, student_step, written_by_student


def test_the_student_is_known_by_its_step() -> None:
    assert student_source(150) == "student:150"
    assert student_step("student:150") == 150
    assert student_step(student_source(0)) == 0


@pytest.mark.parametrize("source", ["", "news", "student", "student:", "student:x", "student:1:2", "my student:150"])
def test_all_else_is_the_teacher_or_the_corpus(source: str) -> None:
    assert student_step(source) is None
    assert not written_by_student(source)
