"""Hub data sets, through the library itself: from a folder on disk, and from a hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.patience import seconds_named
from tests.prompts.hub_server import COMMIT, serve


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


READ = """
import json, sys
from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import read_prompts
for source in json.loads(sys.argv[1]):
    try:
        rows = read_prompts(PromptsConfig.model_validate({"sources": [source]}))
        print(json.dumps([[row.source, row.messages[0]["content"]] for row in rows]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def read_in_a_process(address: str, home: Path, sources: list[dict[str, str]]) -> list[object]:
    """What READ prints; the library reads its settings when it is imported, so it runs in a process of its own."""
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    answer = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(sources)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_a_hub_that_is_asked_too_often_is_asked_again_when_it_says(tmp_path: Path) -> None:
    times: dict[str, list[float]] = {}
    with serve({"README.md": b"", "train.jsonl": b'{"prompt": "one"}\n'}, times=times) as address:
        assert read_in_a_process(address, tmp_path, [{"hub": "owner/name"}]) == [[["owner/name/train:1", "one"]]]
    refused = [asked for asked in times.values() if len(asked) > 1]
    assert refused
    assert all(asked[1] - asked[0] >= 1 for asked in refused)


def test_how_long_a_refusal_says_to_wait() -> None:
    assert seconds_named({"retry-after": "7"}) == 7
    assert seconds_named({"ratelimit": '"api";r=0;t=55'}) == 56
    assert seconds_named({}) is None


def test_a_hub_id_is_streamed_from_a_hub(tmp_path: Path) -> None:
    lines = b'{"prompt": "one"}\n{"prompt": "two"}\n'
    sources = [
        {"hub": "owner/name", "revision": "main"},
        {"hub": "owner/name", "revision": COMMIT, "split": "test"},
        {"hub": "owner/absent"},
    ]
    with serve({"README.md": b"", "train.jsonl": lines, "test.jsonl": lines[:18]}) as address:
        train, test, absent = read_in_a_process(address, tmp_path, sources)
    assert train == [["owner/name/train:1", "one"], ["owner/name/train:2", "two"]]
    assert test == [["owner/name/test:1", "one"]]
    assert absent.startswith("owner/absent/train: cannot read the hub data set: DatasetNotFoundError")
