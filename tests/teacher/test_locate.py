from pathlib import Path

import pytest

from llmdistill.errors import ConfigError
from llmdistill.teacher.source import locate_model, resolve_teacher


def test_a_folder_is_itself_and_a_converted_name_is_its_folder(tiny_teacher: Path, teacher_folder: Path) -> None:
    assert locate_model(str(tiny_teacher), "teacher.model") == tiny_teacher
    assert locate_model("smollm2-135m-instruct", "teacher.model") == teacher_folder


def test_nothing_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDISTILL_HOME", str(tmp_path))
    found = locate_model("smollm2-135m-instruct", "teacher.model")
    assert found.suffix == ".gguf"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("find", [lambda name: locate_model(name, "student.model"), resolve_teacher])
def test_a_hub_name_without_a_network_says_what_to_do(find, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="hf download"):
        find("nobody/no-such-model")
