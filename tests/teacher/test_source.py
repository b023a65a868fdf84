from pathlib import Path

import pytest

from llmdistill.errors import ConfigError, DataError
from llmdistill.teacher.source import home, resolve_teacher


def test_short_name_gives_a_folder_that_is_made_once(teacher_folder: Path) -> None:
    written = (teacher_folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_teacher("smollm2-135m-instruct") == teacher_folder
    assert (teacher_folder / "model.safetensors").stat().st_mtime_ns == written
    assert not list(teacher_folder.parent.glob(".*"))


def test_a_folder_is_taken_as_it_is(tiny_teacher: Path) -> None:
    assert resolve_teacher(str(tiny_teacher)) == tiny_teacher


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMDISTILL_HOME", str(tmp_path / "h"))
    assert home() == tmp_path / "h"
    monkeypatch.delenv("LLMDISTILL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert home() == tmp_path / "c" / "llmdistill"


def test_other_files_and_broken_gguf_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMDISTILL_HOME", str(tmp_path / "home"))
    other = tmp_path / "model.bin"
    other.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"must be a \.gguf"):
        resolve_teacher(str(other))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(DataError, match="cannot read the GGUF file"):
        resolve_teacher(str(broken))
    assert not list((tmp_path / "home").glob("models/*"))


def test_an_unknown_name_says_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no folder, no file, no short name"):
        resolve_teacher("no-such-owner/no-such-model")
