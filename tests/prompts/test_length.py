"""Rows that are longer than the teacher can read: dropped or cut, counted, never without a supervised token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.prompts.shapes import PromptRow
from tests.prompts.makers import assistant, chat, make, make_tokenizer, system, user

TOKENIZER = make_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}", adds_bos=False)
"""Renders contents alone, so that tokens can be counted by hand."""

CHAT = make_tokenizer()


def letters(count: int) -> str:
    """A text of so many tokens: letters that no merge joins."""
    text = ("QZ" * count)[:count]
    assert len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == count
    return text


def test_prompts_that_leave_no_room_are_rejected_by_name_and_the_others_go_on() -> None:
    rows = [chat(user(letters(count)), source=f"a:{count}") for count in (5, 15, 16, 40)]
    corpus = make(rows, TOKENIZER, max_model_len=16, sampling={"max_new_tokens": 1})
    assert [request.source for request in corpus.requests] == ["a:5", "a:15"]
    assert [(row.source, row.reason.partition(":")[0]) for row in corpus.rejected] == [
        ("a:16", "too long"),
        ("a:40", "too long"),
    ]
    assert "40 tokens where teacher.max_model_len 16 less 1 new leaves 15" in corpus.rejected[1].reason


@pytest.mark.parametrize(("policy", "kept"), [("truncate_left", slice(-15, None)), ("truncate_right", slice(0, 15))])
def test_prompts_are_cut_where_that_is_asked_for(policy: str, kept: slice) -> None:
    text = "".join(chr(ord("A") + number % 26) for number in range(40))
    rows = [chat(user(text), source="a:40"), chat(user("QQQ"), source="a:3")]
    corpus = make(rows, TOKENIZER, max_model_len=16, sampling={"max_new_tokens": 1}, length=policy)
    assert [TOKENIZER.decode(request.token_ids) for request in corpus.requests] == [text[kept], "QQQ"]
    assert not corpus.rejected
    assert corpus.changes == {f"truncated on the {policy.removeprefix('truncate_')}": 1}


@pytest.mark.parametrize(("policy", "lengths"), [("drop", None), ("truncate_left", (5, 5)), ("truncate_right", None)])
def test_a_long_prompt_never_eats_the_completion(policy: str, lengths: tuple[int, int] | None) -> None:
    rows = [chat(user(letters(10)), assistant(letters(5))), chat(user("Q"), assistant("Z"), source="good:1")]
    corpus = make(rows, TOKENIZER, mode="score", max_model_len=11, length=policy)  # 10 tokens fit
    assert all(any(request.supervised) for request in corpus.requests)
    if lengths is None:
        assert [row.source for row in corpus.rejected] == ["a:1"]
        assert corpus.rejected[0].reason.startswith("too long: 15 tokens where")
    else:
        (request, _) = corpus.requests
        assert (request.supervised.count(False), request.supervised.count(True)) == lengths


def test_a_long_completion_is_cut_on_the_right_or_dropped() -> None:
    rows = [chat(user(letters(5)), assistant(letters(20))), chat(user("Q"), assistant("Z"), source="good:1")]
    request = make(rows, TOKENIZER, mode="score", max_model_len=11, length="truncate_right").requests[0]
    assert (request.supervised.count(False), request.supervised.count(True)) == (5, 5)
    corpus = make(rows, TOKENIZER, mode="score", max_model_len=11, length="truncate_left")
    assert "cutting cannot help" in corpus.rejected[0].reason


def test_the_oldest_exchanges_go_first_and_the_system_message_stays() -> None:
    old, new = letters(30), letters(20)
    row = chat(system("Be brief."), user(old), assistant("Ho."), user(new), assistant("Hi."), user("And?"))
    corpus = make([row], CHAT, max_model_len=110, sampling={"max_new_tokens": 10}, length="truncate_left")
    text = CHAT.decode(corpus.requests[0].token_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQZ")
    assert text.endswith("user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
    assert old not in text and new in text
    assert len(corpus.requests[0].token_ids) <= 100


def test_a_cut_conversation_keeps_its_template_whole() -> None:
    for policy in ("truncate_left", "truncate_right"):
        request = make(
            [chat(user("word " * 500))], CHAT, max_model_len=60, length=policy, sampling={"max_new_tokens": 8}
        )
        text = CHAT.decode(request.requests[0].token_ids)
        assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert 48 <= len(request.requests[0].token_ids) <= 52


@pytest.mark.parametrize("policy", ["truncate_left", "truncate_right"])
def test_texts_keep_their_begin_of_sequence_token(policy: str) -> None:
    text = "".join(chr(ord("A") + number % 26) for number in range(40))
    (request,) = make([PromptRow("a:1", text=text)], CHAT, mode="score", max_model_len=11, length=policy).requests
    assert request.token_ids[0] == CHAT.bos_token_id
    assert request.supervised == (False,) + (True,) * 9
    assert CHAT.decode(request.token_ids[1:]) == (text[-9:] if policy == "truncate_left" else text[:9])


def test_characters_of_several_tokens_are_cut_whole() -> None:
    rows = [chat(user("𝔘" * 40))]
    for policy in ("truncate_left", "truncate_right"):
        corpus = make(rows, TOKENIZER, max_model_len=16, sampling={"max_new_tokens": 1}, length=policy)
        assert set(TOKENIZER.decode(corpus.requests[0].token_ids)) == {"𝔘"}


contents = st.text(st.sampled_from("QZ é𝔘\n"), max_size=60).map(lambda text: f"q{text}")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(contents, min_size=2, max_size=6).map(lambda found: found[: len(found) // 2 * 2]),
    st.sampled_from(["drop", "truncate_left", "truncate_right"]),
    st.sampled_from([("generate", "last"), ("score", "last"), ("score", "all")]),
    st.integers(20, 90),
)
def test_every_request_fits_and_every_scored_one_has_a_supervised_token(turns, policy, modes, limit) -> None:
    mode, supervise = modes
    messages = [(user, assistant)[place % 2](content) for place, content in enumerate(turns)]
    good = chat(user("Q"), assistant("Z"), source="good:1")
    options = {"mode": mode, "supervise": supervise, "length": policy, "sampling": {"max_new_tokens": 1}}
    corpus = make([chat(*messages), good], CHAT, max_model_len=limit + 1, **options)
    assert {r.source for r in corpus.requests} | {r.source for r in corpus.rejected} == {"a:1", "good:1"}
    for request in corpus.requests:
        assert len(request.token_ids) <= limit
        assert mode == "generate" or any(request.supervised)
