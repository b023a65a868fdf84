"""Responses that are dropped, and why."""

import numpy as np
import pytest

from llmdistill.config.filters import FiltersConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.filters import Response, ResponseFilter, fingerprint, repetition
from llmdistill.teacher.passed_over import NAME, PassedOver, read_passed_over, write_passed_over
from llmdistill.types import Record, TopKRows


def length_of(response: Response) -> float:
    """A user's function."""
    assert response.prompt and len(response.response_ids) > 0
    return len(response.response_ids)


def says_paris(response: Response) -> bool:
    """Another one."""
    return "Paris" in response.response


def record(number: int, prompt: list[int], response: list[int], finish_reason: str = "stop") -> Record:
    count = len(response)
    rows = TopKRows(np.zeros((count, 1), np.int32), np.zeros((count, 1), np.float32), np.zeros(count, np.float32))
    token_ids = np.array(prompt + response, np.int32)
    return Record(bytes([number] * 16), token_ids, np.arange(len(token_ids)) >= len(prompt), rows, finish_reason)


def outcome(config: dict, records: list[Record], folder=None) -> tuple[list[int], dict[int, str]]:
    kept, dropped = ResponseFilter(FiltersConfig(**config), folder).apply(records)
    return [r.key[0] for r in kept], {r.key[0]: reason for r, reason in dropped}


def test_without_settings_everything_is_kept() -> None:
    records = [record(1, [5], [7] * 40, "length"), record(2, [5], [7] * 40, "length")]
    assert outcome({}, records) == ([1, 2], {})


def test_each_reason_is_said() -> None:
    records = [
        record(1, [5], [1, 2, 3, 4, 5]),
        record(2, [5], [1, 2, 3, 4, 5]),
        record(3, [6], [1, 2, 3, 4, 5]),
        record(4, [6], [8, 9], "length"),
        record(5, [6], [7] * 11),
    ]
    kept, dropped = outcome({"unfinished": "drop", "duplicates": "drop", "max_repetition": 0.5}, records)
    assert kept == [1, 3]
    assert dropped == {
        2: "the same response as another sample of its prompt",
        4: "unfinished after 2 tokens",
        5: "0.88 of it is repetition",
    }


def test_scored_texts_are_not_responses() -> None:
    assert outcome({"unfinished": "drop", "max_repetition": 0.0}, [record(1, [5], [7] * 9, "scored")]) == ([1], {})


def test_repetition_counts_runs_of_four() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_a_users_function_decides_and_best_of_n_keeps_one_of_each_prompt(teacher_folder, tokenizer) -> None:
    name = f"{__name__}:length_of"
    records = [record(n, [5 + n // 3], list(range(20, 21 + n))) for n in range(6)]
    kept, dropped = outcome({"function": name, "minimum": 2}, records, teacher_folder)
    assert kept == [1, 2, 3, 4, 5]
    assert dropped == {0: f"{name} gives it 1, below 2"}
    kept, dropped = outcome({"function": name, "minimum": 2, "best_of_n": True}, records, teacher_folder)
    assert kept == [2, 5]
    assert dropped[3] == "another sample has a value above 4"
    answers = [tokenizer("It is Paris.")["input_ids"], tokenizer("It is Rome.")["input_ids"]]
    records = [record(n, [5], answer) for n, answer in enumerate(answers)]
    assert outcome({"function": f"{__name__}:says_paris"}, records, teacher_folder)[0] == [0]


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"needs teacher\.filters\.function"):
        FiltersConfig(best_of_n=True)
    with pytest.raises(ValueError, match="pattern"):
        FiltersConfig(function="no_colon")
    with pytest.raises(ConfigError, match="there is no function 'os:nothing_of_that_name'"):
        ResponseFilter(FiltersConfig(function="os:nothing_of_that_name"), None)  # type: ignore[arg-type]


def test_what_was_passed_over_is_remembered(tmp_path) -> None:
    assert read_passed_over(tmp_path) == []
    entries = [
        PassedOver(b"a" * 16, RejectedRow("f:1", "kills"), ""),
        PassedOver(b"b" * 16, RejectedRow("f:2", "filtered: é"), fingerprint(FiltersConfig(unfinished="drop"))),
    ]
    write_passed_over(tmp_path, entries)
    assert read_passed_over(tmp_path) == entries
    assert fingerprint(FiltersConfig()) != entries[1].filters
    (tmp_path / NAME).write_text('{"key": "zz"}\n')
    with pytest.raises(DataError, match="remove the file; the requests in it are then tried again"):
        read_passed_over(tmp_path)
