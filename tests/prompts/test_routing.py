"""Which teacher answers which prompt."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.requests import Corpus, make_requests
from llmdistill.prompts.routing import choose_teacher
from llmdistill.prompts.shapes import PromptRow
from llmdistill.types import CaptureSpec
from tests.prompts.makers import make_tokenizer, write_jsonl

WEIGHTS = {"math": 1.0, "code": 3.0, "teacher": 0.5}


def asked(number: int) -> PromptRow:
    return PromptRow(f"a:{number}", messages=({"role": "user", "content": f"Tell me about {number}."},))


ROWS = [asked(number) for number in range(2000)]


def test_shares_are_the_weights() -> None:
    found = Counter(choose_teacher(row, WEIGHTS) for row in ROWS)
    for name, weight in WEIGHTS.items():
        share = weight / sum(WEIGHTS.values())
        sigma = math.sqrt(len(ROWS) * share * (1 - share))
        assert abs(found[name] - len(ROWS) * share) < 3 * sigma


def test_neither_the_order_nor_the_scale_of_weights_matters() -> None:
    other = {"code": 6.0, "teacher": 1.0, "math": 2.0}
    assert [choose_teacher(row, WEIGHTS) for row in ROWS[:200]] == [choose_teacher(row, other) for row in ROWS[:200]]


def test_a_further_teacher_only_takes() -> None:
    before = [choose_teacher(row, WEIGHTS) for row in ROWS]
    after = [choose_teacher(row, {**WEIGHTS, "law": 1.0}) for row in ROWS]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"law"}
    assert 0 < len(moved) < len(ROWS) / 3


def test_the_answer_that_a_row_holds_does_not_count() -> None:
    for row in ROWS[:50]:
        messages = (*(row.messages or ()), {"role": "assistant", "content": row.source})
        assert choose_teacher(PromptRow("b:1", messages=messages), WEIGHTS) == choose_teacher(row, WEIGHTS)


def specs(mode: str = "generate") -> dict[str, tuple[TeacherConfig, CaptureSpec]]:
    return {
        name: (
            TeacherConfig.model_validate({"model": name, "max_model_len": length, "sampling": {"samples": samples}}),
            CaptureSpec(mode, "top_k", 8, 400, name, "k", "fake", "float32", {}),
        )
        for name, length, samples in (("teacher", 2048, 1), ("code", 300, 2))
    }


def corpus(folder: Path, sources: list[dict], **prompts) -> Corpus:
    config = PromptsConfig.model_validate({"sources": sources, **prompts})
    return make_requests(read_prompts(config), make_tokenizer(), config, specs(config.mode))


def source(folder: Path, name: str, texts: list[str], **more) -> dict:
    path = folder / f"{name}.jsonl"
    write_jsonl(path, [{"prompt": text} for text in texts])
    return {"path": str(path), **more}


def test_requests_carry_teacher_and_source_and_prompts_that_are_added_move_nothing(tmp_path: Path) -> None:
    texts = [f"What is {number}?" for number in range(60)]
    both = {"teachers": {"teacher": 1, "code": 1}}
    before = corpus(tmp_path, [source(tmp_path, "gsm", texts, **both)]).requests
    assert {request.teacher for request in before} == {"teacher", "code"}
    assert {request.source_name for request in before} == {"gsm"}
    samples = Counter(Counter(request.token_ids for request in before if request.teacher == "code").values())
    assert set(samples) == {2}, "each teacher samples as often as it is set to"
    (tmp_path / "moved").mkdir()
    more = [
        source(tmp_path, "first", ["Hello.", "How are you?"], label="chat"),
        source(tmp_path / "moved", "gsm", ["New.", *texts[::-1]], **both),
    ]
    after = {request.key: request for request in corpus(tmp_path, more).requests}
    for request in before:
        assert after[request.key].teacher == request.teacher
        assert after[request.key].source_name == request.source_name
        assert after[request.key].split == request.split
    assert {request.teacher for request in after.values() if request.source_name == "chat"} == {"teacher"}


def test_a_prompt_of_two_sources_is_asked_once_of_each_teacher(tmp_path: Path) -> None:
    sources = [
        source(tmp_path, "a", ["What is 1?"]),
        source(tmp_path, "b", ["What is 1?"], teachers={"teacher": 2}),
        source(tmp_path, "c", ["What is 1?"], teachers={"code": 1}),
    ]
    found = corpus(tmp_path, sources)
    assert [(request.teacher, request.source_name) for request in found.requests] == [
        ("teacher", "a"), ("code", "c"), ("code", "c"),
    ]  # fmt: skip
    assert len({request.split for request in found.requests}) == 1
    assert [row.reason.split(":")[0] for row in found.rejected] == ["duplicate"]


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_each_teacher_has_its_own_longest_sequence(tmp_path: Path, mode: str) -> None:
    row = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "yes"}]}
    write_jsonl(tmp_path / "long.jsonl", [row])
    long = {"path": str(tmp_path / "long.jsonl")}
    assert len(corpus(tmp_path, [long], mode=mode).requests) == 1
    short = source(tmp_path, "short", ["Hi"]) if mode == "generate" else long
    found = corpus(tmp_path, [short, {**long, "teachers": {"code": 1}}], mode=mode)
    assert "teachers.code.max_model_len 300" in found.rejected[0].reason
