import datetime

import pytest

from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.prompts.render import UNUSED_ANSWER
from llmdistill.prompts.shapes import PromptRow
from llmdistill.types import Request
from tests.prompts.makers import (
    CHATML,
    IGNORES_SYSTEM,
    MARKS_GENERATION,
    PLAIN_WORDS,
    REFUSES_SYSTEM,
    TAKES_TOOLS,
    THINKS,
    WRITES_BOS,
    WRITES_DATE,
    assistant,
    chat,
    make,
    make_tokenizer,
    system,
    user,
)

QUESTION = "What is the capital of France?"
DIALOGUE = (user("One?"), assistant("First."), user("Two?"), assistant("Second."))


def only(corpus) -> Request:
    assert not corpus.rejected
    (request,) = corpus.requests
    return request


def reason(corpus_of, *args, **kwargs) -> str:
    """Why the one row given is rejected; a good row beside it keeps the corpus alive."""
    row, *rest = args
    good = chat(user("Good question?"), assistant("Good answer."), source="good:1")
    corpus = corpus_of([row, good], *rest, **kwargs)
    (found,) = corpus.rejected
    assert found.source == row.source
    return found.reason


def supervised_text(tokenizer, request: Request) -> list[str]:
    """The supervised parts of a request."""
    assert request.supervised is not None
    parts, previous = [], False
    for token, wanted in zip(request.token_ids, request.supervised, strict=True):
        if wanted:
            parts.append([*parts.pop(), token] if previous else [token])
        previous = wanted
    return [tokenizer.decode(part) for part in parts]


def test_generate_uses_the_chat_template_once(tokenizer) -> None:
    request = only(make([chat(user(QUESTION))], tokenizer))
    text = tokenizer.decode(request.token_ids)
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == text.count("<|im_end|>") + 1
    assert request.supervised is None


def test_text_and_messages_with_one_user_turn_are_the_same_prompt(tokenizer) -> None:
    corpus = make([chat(user(QUESTION)), PromptRow("a:2", text=QUESTION)], tokenizer)
    assert len(corpus.requests) == 1
    assert corpus.rejected == [RejectedRow("a:2", "duplicate: the same prompt as a:1")]


def test_an_answer_that_a_row_holds_is_not_used_where_the_teacher_answers(tokenizer) -> None:
    corpus = make([chat(user(QUESTION), assistant("Paris."))], tokenizer)
    assert only(corpus).token_ids == only(make([chat(user(QUESTION))], tokenizer)).token_ids
    assert corpus.changes == {UNUSED_ANSWER: 1}


def test_score_supervises_the_response_and_its_end_token(tokenizer) -> None:
    request = only(make([chat(user(QUESTION), assistant("Paris."))], tokenizer, mode="score"))
    assert supervised_text(tokenizer, request) == ["Paris.<|im_end|>"]
    assert request.token_ids[-1] == tokenizer.eos_token_id
    prompt = only(make([chat(user(QUESTION))], tokenizer))
    assert request.token_ids[: len(prompt.token_ids)] == prompt.token_ids


def test_score_of_text_supervises_all_but_the_first_token(tokenizer) -> None:
    request = only(make([PromptRow("a:1", text="Once upon a time")], tokenizer, mode="score"))
    assert request.supervised == (False,) + (True,) * (len(request.token_ids) - 1)


@pytest.mark.parametrize(("template", "adds_bos"), [(WRITES_BOS, True), (WRITES_BOS, False)])
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_one_begin_of_sequence_token_where_template_and_tokenizer_both_write_it(template, adds_bos, mode) -> None:
    tokenizer = make_tokenizer(template, adds_bos)
    request = only(make([chat(user("Hi"), assistant("Ho"))], tokenizer, mode=mode))
    assert request.token_ids.count(tokenizer.bos_token_id) == 1
    assert request.token_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("adds_bos", [True, False])
def test_raw_text_gets_the_begin_of_sequence_token_that_its_tokenizer_adds(adds_bos: bool) -> None:
    tokenizer = make_tokenizer(CHATML, adds_bos)
    request = only(make([PromptRow("a:1", text="Once upon <s> a time")], tokenizer, mode="score"))
    assert request.token_ids.count(tokenizer.bos_token_id) == adds_bos
    assert (
        request.token_ids
        == tuple(make_tokenizer(CHATML, adds_bos).bos_token_id for _ in range(adds_bos)) + request.token_ids[adds_bos:]
    )
    assert tokenizer.decode(request.token_ids[adds_bos:]) == "Once upon <s> a time"


@pytest.mark.parametrize("template", [CHATML, WRITES_BOS, MARKS_GENERATION])
def test_masks_cover_the_assistant_alone_with_and_without_a_generation_block(template: str) -> None:
    tokenizer = make_tokenizer(template)
    last = only(make([chat(*DIALOGUE)], tokenizer, mode="score"))
    assert supervised_text(tokenizer, last) == ["Second.<|im_end|>"]
    every = only(make([chat(*DIALOGUE)], tokenizer, mode="score", supervise="all"))
    assert supervised_text(tokenizer, every) == ["First.<|im_end|>", "Second.<|im_end|>"]
    assert every.token_ids == last.token_ids
    assert every.key != last.key


def test_the_mask_of_one_turn_counts_its_tokens_and_its_end_token() -> None:
    tokenizer = make_tokenizer()
    request = only(make([chat(user("Hi"), assistant("Paris. Paris."))], tokenizer, mode="score"))
    expected = len(tokenizer("Paris. Paris.", add_special_tokens=False)["input_ids"]) + 1
    assert sum(request.supervised or ()) == expected


def test_a_template_that_changes_earlier_turns_makes_a_record_of_every_turn() -> None:
    tokenizer = make_tokenizer(THINKS)
    row = chat(user("One?"), assistant("First.", reasoning_content="Hm."), user("Two?"), assistant("Second."))
    corpus = make([row], tokenizer, mode="score", supervise="all", template_arguments={"enable_thinking": True})
    first, second = corpus.requests
    assert supervised_text(tokenizer, first) == ["<think>\nHm.\n</think>\n\nFirst.<|im_end|>"]
    assert supervised_text(tokenizer, second) == ["Second.<|im_end|>"]
    assert "Hm." not in tokenizer.decode(second.token_ids)  # as the teacher would see it


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_an_empty_block_of_thoughts_is_not_supervised(arguments: dict[str, bool]) -> None:
    tokenizer = make_tokenizer(THINKS)
    row = chat(user("One?"), assistant("First."))
    request = only(make([row], tokenizer, mode="score", template_arguments=arguments))
    assert supervised_text(tokenizer, request) == ["First.<|im_end|>"]
    assert "<think>\n\n</think>" in tokenizer.decode(request.token_ids)


def test_template_arguments_reach_the_template_and_misspelt_ones_are_refused() -> None:
    tokenizer = make_tokenizer(THINKS)
    request = only(make([chat(user("Hi"))], tokenizer, template_arguments={"enable_thinking": False}))
    assert tokenizer.decode(request.token_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ConfigError, match="has no argument enable_thinkin"):
        make([chat(user("Hi"))], tokenizer, template_arguments={"enable_thinkin": False})
    with pytest.raises(ValueError, match="may not hold tools"):
        make([chat(user("Hi"))], tokenizer, template_arguments={"tools": []})


def test_a_template_that_writes_the_date_needs_one() -> None:
    tokenizer = make_tokenizer(WRITES_DATE)
    with pytest.raises(ConfigError, match="tomorrow every prompt would be another one"):
        make([chat(user("Hi"))], tokenizer)
    request = only(make([chat(user("Hi"))], tokenizer, template_date=datetime.date(2026, 1, 31)))
    assert "Today is 31 Jan 2026<|im_end|>" in tokenizer.decode(request.token_ids)


def test_a_token_never_reaches_from_the_prompt_into_the_response() -> None:
    tokenizer = make_tokenizer(PLAIN_WORDS)
    row = chat(user("Hi"), assistant("Paris."))
    score, prompt = only(make([row], tokenizer, mode="score")), only(make([chat(user("Hi"))], tokenizer))
    joint = tokenizer("user: Hi\nassistant: Paris.\n", add_special_tokens=False)["input_ids"]
    assert tuple(joint[: len(prompt.token_ids)]) != prompt.token_ids  # " Paris" is one token
    assert score.token_ids[: len(prompt.token_ids)] == prompt.token_ids
    assert supervised_text(tokenizer, score) == ["Paris.\n"]


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        (
            REFUSES_SYSTEM,
            chat(system("Be brief."), user("Hi"), assistant("Ho")),
            "it refuses the conversation: no system role",
        ),
        (IGNORES_SYSTEM, chat(system("Be brief."), user("Hi"), assistant("Ho")), "it leaves the system message out"),
        (CHATML, chat(user("Hi"), assistant("Ho"), tools=({"name": "f"},)), "it leaves the tools out"),
        (
            CHATML,
            chat(
                user("Hi"),
                assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}]),
                {"role": "tool", "content": "4"},
                assistant("Ho"),
            ),
            "it leaves the tool calls out",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_what_a_template_cannot_show_is_rejected_by_row(template, row, expected, mode) -> None:
    assert expected in reason(make, row, make_tokenizer(template), mode=mode)


def test_tools_and_their_calls_are_rendered() -> None:
    tokenizer = make_tokenizer(TAKES_TOOLS)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = chat(
        user("1 + 1?"),
        assistant("", tool_calls=[call]),
        {"role": "tool", "content": "2"},
        assistant("2."),
        tools=({"name": "add"},),
    )
    request = only(make([row], tokenizer, mode="score", supervise="all"))
    assert tokenizer.decode(request.token_ids).startswith('<|im_start|>system\n[{"name": "add"}]<|im_end|>')
    assert supervised_text(tokenizer, request) == [
        '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>',
        "2.<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(user("Hi")), "no response: the conversation must end with an assistant message"),
        (PromptRow("a:1", text="x"), "too short: the text has fewer than two tokens"),
        (PromptRow("a:1", text="word " * 600), "too long: "),
    ],
)
def test_what_cannot_be_scored_is_rejected_by_row(tokenizer, row, expected: str) -> None:
    assert expected in reason(make, row, tokenizer, mode="score", max_model_len=512)


def test_a_tokenizer_without_a_template_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(DataError, match="no chat template"):
        make([chat(user("Hi"))], make_tokenizer(None))
    assert make([PromptRow("a:1", text="Once upon")], make_tokenizer(None), mode="score").requests


def test_a_row_that_the_template_refuses_is_an_error_where_that_is_asked_for() -> None:
    with pytest.raises(DataError, match="a:1: chat template: it refuses"):
        make([chat(system("x"), user("y"))], make_tokenizer(REFUSES_SYSTEM), on_bad_row="error")
