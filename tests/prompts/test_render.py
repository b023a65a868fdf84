import dataclasses

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import DataError
from llmdistill.prompts.corpus import PromptRow, RejectedRow
from llmdistill.prompts.render import make_requests
from llmdistill.types import CaptureSpec, Request

SPEC = CaptureSpec("generate", "top_k", 64, 49152, "t", "k", "vllm", "bfloat16", {})
USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}


def make(rows, tokenizer, mode="generate", spec=SPEC, **teacher) -> tuple[list[Request], list[RejectedRow]]:
    prompts = PromptsConfig.model_validate({"sources": [{"path": "x"}], "mode": mode})
    return make_requests(rows, tokenizer, prompts, TeacherConfig.model_validate({"model": "x", **teacher}), spec)


def test_generate_uses_the_chat_template_once(tokenizer) -> None:
    (request,), rejected = make([PromptRow("a:1", messages=(USER,))], tokenizer)
    text = tokenizer.decode(request.token_ids)
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == text.count("<|im_end|>") + 1
    assert not rejected
    assert request.supervised is None


def test_text_and_messages_with_one_user_turn_are_the_same_prompt(tokenizer) -> None:
    requests, rejected = make([PromptRow("a:1", messages=(USER,)), PromptRow("a:2", text=USER["content"])], tokenizer)
    assert len(requests) == 1
    assert rejected == [RejectedRow("a:2", "the same prompt as a:1")]


def test_score_supervises_the_response_and_its_end_token(tokenizer) -> None:
    (request,), _ = make([PromptRow("a:1", messages=(USER, ANSWER))], tokenizer, mode="score")
    assert request.supervised is not None
    supervised = [token for token, wanted in zip(request.token_ids, request.supervised, strict=True) if wanted]
    assert tokenizer.decode(supervised) == "Paris.<|im_end|>"
    assert request.token_ids[-1] == tokenizer.eos_token_id
    (prompt,), _ = make([PromptRow("a:1", messages=(USER,))], tokenizer)
    assert request.token_ids[: len(prompt.token_ids)] == prompt.token_ids


def test_score_of_text_supervises_all_but_the_first_token(tokenizer) -> None:
    (request,), _ = make([PromptRow("a:1", text="Once upon a time")], tokenizer, mode="score")
    assert request.supervised == (False,) + (True,) * (len(request.token_ids) - 1)


@pytest.mark.parametrize(
    ("row", "mode", "reason"),
    [
        (PromptRow("a:1", messages=(USER, ANSWER)), "generate", "nothing to answer"),
        (PromptRow("a:1", messages=(USER,)), "score", "must end with an assistant message"),
        (PromptRow("a:1", text="x"), "score", "fewer than two tokens"),
        (PromptRow("a:1", text="word " * 600), "score", "too long"),
        (RejectedRow("a:1", "not JSON"), "score", "not JSON"),
    ],
)
def test_unusable_rows_are_rejected_by_name(tokenizer, row, mode: str, reason: str) -> None:
    good = PromptRow("a:2", messages=(USER, ANSWER) if mode == "score" else (USER,))
    requests, rejected = make([row, good], tokenizer, mode=mode, max_model_len=512)
    assert len(requests) == 1
    assert [item.source for item in rejected] == ["a:1"]
    assert reason in rejected[0].reason


def test_no_usable_row_at_all_is_an_error(tokenizer) -> None:
    with pytest.raises(DataError, match="none of the 1 rows"):
        make([RejectedRow("a:1", "not JSON")], tokenizer)


def test_samples_have_keys_and_seeds_of_their_own_and_one_side_of_the_split(tokenizer) -> None:
    requests, _ = make([PromptRow("a:1", messages=(USER,))], tokenizer, sampling={"samples": 3})
    assert len({request.key for request in requests}) == len({request.seed for request in requests}) == 3
    assert len({request.split for request in requests}) == 1


def test_keys_follow_content_and_nothing_else(tokenizer) -> None:
    rows = [PromptRow(f"a:{n}", text=f"Tell me about {n}.") for n in range(4)]
    forward, _ = make(rows, tokenizer)
    backward, _ = make(rows[::-1], tokenizer, requests_per_shard=1, replicas=7)
    assert {r.key for r in forward} == {r.key for r in backward}
    other_teacher, _ = make(rows, tokenizer, spec=dataclasses.replace(SPEC, teacher="other"))
    other_k, _ = make(rows, tokenizer, spec=dataclasses.replace(SPEC, top_k=32))
    assert not {r.key for r in forward} & ({r.key for r in other_teacher} | {r.key for r in other_k})


def test_shipped_corpus_is_used_in_full(tokenizer) -> None:
    from llmdistill.prompts.corpus import read_prompts

    requests, rejected = make(read_prompts(["configs/data/quickstart_prompts.jsonl"]), tokenizer)
    assert len(requests) >= 300
    assert not rejected
