"""The teacher's text in the tokens of a student with another tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llmdistill.cache.merge import merge
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.stats import cache_stats
from llmdistill.cache.verify import verify
from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.shapes import PromptRow
from llmdistill.student.retokenize import NOT_COMPARED, Retokenized, retokenize
from tests.prompts.makers import assistant, chat, make_tokenizer, user
from tests.student.other_tokenizer import answered, other_tokenizer, requests_of, save_answers, teacher_spec

TEACHER, STUDENT = make_tokenizer(), other_tokenizer()
END = TEACHER.convert_tokens_to_ids("<|im_end|>")
PROMPTS = PromptsConfig.model_validate({"sources": [{"path": "x"}], "held_out": 0.5})
ANSWERS = ["Paris is the capital.", "It is 🙂 日本.", "Athens", "", "The capital of Spain is Madrid"]
ROWS = [chat(user(f"What is number {n}?"), source=f"questions.jsonl:{n}") for n in range(len(ANSWERS))]


def save(cache: Path, rows: Sequence[PromptRow] = ROWS, answers: Sequence[str] = ANSWERS) -> None:
    """All answers end with the teacher's end token but the last, which was cut."""
    requests = requests_of(rows, TEACHER, PROMPTS).requests
    records = []
    for number, (request, text) in enumerate(zip(requests, answers, strict=True)):
        ids = TEACHER.encode(text, add_special_tokens=False)
        cut = number == len(answers) - 1
        records.append(answered(request, ids if cut else [*ids, END], "length" if cut else "stop"))
    save_answers(cache, records, teacher_spec(TEACHER))


def again(tmp_path: Path, prompts: PromptsConfig = PROMPTS, rows: Sequence[PromptRow] = ROWS) -> Retokenized:
    return retokenize(
        tmp_path / "cache",
        tmp_path / "student_cache",
        TEACHER,
        STUDENT,
        prompts,
        lambda: requests_of(rows, TEACHER, prompts).origins,
    )


def records(cache: Path) -> dict[str, tuple[list[int], list[int], str]]:
    """Prompt as text → its tokens, those of the response, and how it ended."""
    reader, found = CacheReader(cache), {}
    for number in range(len(reader)):
        record = reader.read(number)
        ids, supervised = record.token_ids_N, record.supervised_N
        prompt = ids[~supervised].tolist()
        found[STUDENT.decode(prompt)] = prompt, ids[supervised].tolist(), record.finish_reason
    return found


def test_prompts_have_the_students_template_and_responses_the_teachers_text(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    found = again(tmp_path)
    assert (found.records, found.rejected) == (len(ROWS), [])
    made = records(tmp_path / "student_cache")
    for number, text in enumerate(ANSWERS):
        _, response, reason = made[f"[user] What is number {number}?\n[assistant] "]
        assert (STUDENT.decode(response), reason) == (
            (text, "length") if number == len(ANSWERS) - 1 else (text + "</s>", "stop")
        )
        body = response[:-1] if reason == "stop" else response
        assert body == STUDENT.encode(text, add_special_tokens=False)
        assert STUDENT.eos_token_id not in body
    assert CacheReader(tmp_path / "student_cache").sources == ["questions.jsonl"]
    assert verify(tmp_path / "student_cache").findings == []


def test_the_held_out_prompts_are_those_of_the_first_cache(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    again(tmp_path)
    first, second = CacheReader(tmp_path / "cache"), CacheReader(tmp_path / "student_cache")
    assert sorted(first.splits) == sorted(second.splits)
    assert 0 < len(second.split(0.5)[1]) < len(second)


def test_chunks_carry_all_of_the_teachers_log_probability(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    assert not again(tmp_path).changes
    first, second = CacheReader(tmp_path / "cache"), CacheReader(tmp_path / "student_cache")
    by_split = {int(first.splits[n]): first.read(n).rows.actual_logprobs_R.sum() for n in range(len(first))}
    for number in range(len(second)):
        rows = second.read(number).rows
        assert rows.chunk_ends_R.sum() == len(rows.chunk_logprobs_E)
        assert rows.chunk_logprobs_E.sum() == by_split[int(second.splits[number])]
    stats = cache_stats(tmp_path / "student_cache")
    assert stats["spec"]["kind"] == "chunks"
    assert stats["rows_without_teacher"] == 0
    assert stats["chunks"] == sum(len(second.read(n).rows.chunk_logprobs_E) for n in range(len(second)))


def test_what_is_committed_is_not_made_again(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    again(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "student_cache/shards").iterdir()}

    def refuse() -> dict[bytes, object]:
        raise AssertionError("nothing is missing, so no prompt file is read")

    target = tmp_path / "student_cache"
    assert retokenize(tmp_path / "cache", target, TEACHER, STUDENT, PROMPTS, refuse).records == 0
    more = [*ROWS, chat(user("And one more?"))]
    save(tmp_path / "cache", more, [*ANSWERS, "Paris"])
    assert again(tmp_path, rows=more).records == 1
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(CacheReader(target)) == len(more)


def test_a_compressed_copy_holds_the_same_records(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    again(tmp_path)
    merge(tmp_path / "merged", [tmp_path / "student_cache"], compression="zstd")
    assert records(tmp_path / "merged") == records(tmp_path / "student_cache")


def test_other_settings_of_the_prompts_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    again(tmp_path)
    with pytest.raises(DataError, match="derived_from"):
        again(tmp_path, PROMPTS.model_copy(update={"control_tokens": "keep"}))


def test_special_tokens_are_no_text(tmp_path: Path) -> None:
    """One within a response is refused; text that spells one of the student's is escaped."""
    request, other = requests_of(ROWS[:2], TEACHER, PROMPTS).requests
    start = TEACHER.convert_tokens_to_ids("<|im_start|>")
    body = TEACHER.encode("Paris", add_special_tokens=False)
    spelled = TEACHER.encode("It is </s> here", add_special_tokens=False)
    answers = [answered(request, [*body, start, *body, END], "stop"), answered(other, [*spelled, END], "stop")]
    save_answers(tmp_path / "cache", answers, teacher_spec(TEACHER))
    found = again(tmp_path)
    assert [row.source for row in found.rejected] == ["questions.jsonl:0"]
    assert "wrote <|im_start|> within its response" in found.rejected[0].reason
    ((_, response, _),) = records(tmp_path / "student_cache").values()
    assert response.count(STUDENT.eos_token_id) == 1
    assert STUDENT.decode(response) == "It is </s> here</s>"
    assert not CacheReader(tmp_path / "student_cache").read(0).rows.chunk_logprobs_E.isnan().any()


def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    (request,) = requests_of(ROWS[:1], TEACHER, PROMPTS).requests
    broken = TEACHER.encode("🙂", add_special_tokens=False)[:2] + TEACHER.encode(" is big", add_special_tokens=False)
    save_answers(tmp_path / "cache", [answered(request, [*broken, END], "stop")], teacher_spec(TEACHER))
    assert again(tmp_path).changes == {NOT_COMPARED: 1}
    logprobs = CacheReader(tmp_path / "student_cache").read(0).rows.chunk_logprobs_E
    assert logprobs.isnan().any()
    assert not logprobs.isnan().all()
    assert cache_stats(tmp_path / "student_cache")["rows_without_teacher"] > 0


def test_a_prompt_that_is_gone_is_listed(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    found = again(tmp_path, rows=ROWS[1:])
    assert found.records == len(ROWS) - 1
    assert [row.reason.partition(":")[0] for row in found.rejected] == ["no row"]


def test_a_student_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    bare = other_tokenizer.__wrapped__()
    bare.chat_template = None
    origins = requests_of(ROWS, TEACHER, PROMPTS).origins
    with pytest.raises(ConfigError, match="no chat template"):
        retokenize(tmp_path / "cache", tmp_path / "student_cache", TEACHER, bare, PROMPTS, lambda: origins)


@pytest.mark.parametrize("supervise", ["last", "all"])
def test_scored_conversations_and_texts(tmp_path: Path, supervise: str) -> None:
    prompts = PromptsConfig.model_validate(
        {"sources": [{"path": "x"}], "mode": "score", "supervise": supervise, "held_out": 0.5}
    )
    rows = [
        chat(user("One?"), assistant("Paris is."), user("Two?"), assistant("Madrid 🙂.")),
        PromptRow("a:2", text="The capital of France is Paris."),
    ]
    requests = requests_of(rows, TEACHER, prompts).requests
    save_answers(tmp_path / "cache", [answered(r, [], "scored") for r in requests], teacher_spec(TEACHER, "score"))
    found = again(tmp_path, prompts, rows)
    assert (found.records, found.rejected, found.changes) == (2, [], {})
    reader = CacheReader(tmp_path / "student_cache")
    responses = {}
    for number in range(2):
        record = reader.read(number)
        responses[STUDENT.decode(record.token_ids_N)] = STUDENT.decode(record.token_ids_N[record.supervised_N])
    turns = ["Paris is.</s>", "Madrid 🙂.</s>"]
    assert responses == {
        "[user] One?\n[assistant] Paris is.</s>\n[user] Two?\n[assistant] Madrid 🙂.</s>": "".join(
            turns if supervise == "all" else turns[1:]
        ),
        "The capital of France is Paris.": " capital of France is Paris.",
    }
