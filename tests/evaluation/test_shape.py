from pathlib import Path

from llmdistill.config.student import FromTeacherConfig
from llmdistill.evaluation.shape import layers_from, model_shape
from llmdistill.student.creation import create_from_teacher


def test_layers_are_found_in_the_teacher_by_their_weights(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=3), tmp_path / "student")
    assert layers_from(tmp_path / "student", tiny_teacher) == [0, 2, 3]
    assert model_shape(tmp_path / "student")["num_hidden_layers"] == 3
    assert model_shape(tiny_teacher)["hidden_size"] == 64


def test_a_teacher_of_other_weights_has_none_of_the_layers(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "student")
    assert layers_from(tiny_teacher, tmp_path / "student") is None
