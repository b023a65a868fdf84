"""Hub data sets, through the library itself: a folder on disk is read by the same code as a data set of the hub."""

import json
from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_prompts


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 5), ("test", 2)):
        rows = [{"question": f"{split} {number}?", "answer": str(number)} for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def rows(**source) -> list:
    return list(read_prompts(PromptsConfig.model_validate({"sources": [source]})))


def test_a_split_is_streamed(data_set: str) -> None:
    found = rows(hub=data_set, split="test")
    assert [row.messages[0]["content"] for row in found] == ["test 0?", "test 1?"]
    assert found[1].source == f"{data_set}/test:2"
    assert len(rows(hub=data_set)) == 5
    assert len(rows(hub=data_set, limit=3)) == 3


@pytest.mark.parametrize("wrong", [{"split": "validation"}, {"name": "other"}])
def test_an_unknown_split_or_configuration_is_named(data_set: str, wrong: dict[str, str]) -> None:
    with pytest.raises(DataError, match="cannot read the hub data set"):
        rows(hub=data_set, **wrong)


def test_path_and_hub_exclude_each_other() -> None:
    for source in ({}, {"path": "a", "hub": "b"}, {"path": "a", "split": "test"}, {"hub": "b", "format": "json"}):
        with pytest.raises(ValueError, match=r"belong to|exactly one of path and hub"):
            rows(**source)
    with pytest.raises(ValueError, match="a weight to every source or to none"):
        PromptsConfig.model_validate({"sources": [{"path": "a", "weight": 1}, {"path": "b"}]})
