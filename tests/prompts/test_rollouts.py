"""What student and teacher are asked in a round."""

import json
from pathlib import Path

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.config.rounds import RoundsConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.prompts.rollouts import rollout_requests, score_requests, training_prompts
from llmdistill.types import CaptureSpec, student_step

SPEC = CaptureSpec("generate", "top_k", 1, 49152, "student", "k", "fake", "float32")
WRITER = TeacherConfig.model_validate({"model": "m", "sampling": {"max_new_tokens": 8, "samples": 2}})


def prompts_of(folder: Path, tokenizer, order: list[int], rounds: RoundsConfig):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me about {n}."}) + "\n" for n in order))
    corpus = PromptsConfig.model_validate({"sources": [{"path": str(path)}], "held_out": 0.25})
    return training_prompts(corpus, tokenizer, WRITER, SPEC, rounds)


def make_rounds(**settings: object) -> RoundsConfig:
    return RoundsConfig.model_validate({"count": 9, "steps": 1, "prompts": 7, **settings})


def test_the_next_prompts_each_round_and_none_that_is_held_out(tokenizer, tmp_path: Path) -> None:
    rounds = make_rounds(sampling={"samples": 2, "temperature": 1.0})
    prompts = prompts_of(tmp_path, tokenizer, list(range(40)), rounds)
    assert 20 < len(prompts) < 40
    assert all(prompt.split >= 0.25 * 2**64 for prompt in prompts)
    again = prompts_of(tmp_path, tokenizer, list(reversed(range(40))), rounds)
    assert [prompt.token_ids for prompt in again] == [prompt.token_ids for prompt in prompts]

    asked = [request for number in range(9) for request in rollout_requests(prompts, SPEC, rounds, number)]
    assert len(asked) == len({request.key for request in asked}) == 9 * 7 * 2
    assert len({request.seed for request in asked}) == len(asked), "a prompt that comes again has other draws"
    times = [sum(request.token_ids == prompt.token_ids for request in asked) for prompt in prompts]
    assert max(times) - min(times) <= 2, "all before any comes again"
    with pytest.raises(ConfigError, match=r"a round wants 50 prompts, the corpus has \d+"):
        prompts_of(tmp_path, tokenizer, list(range(40)), make_rounds(prompts=50))


def test_equal_answers_are_records_of_their_own() -> None:
    written = [(bytes([n]) * 16, [5, 6, 7], [False, False, True], 3) for n in range(2)]
    first, second = score_requests(written, SPEC, 150)
    assert first.token_ids == second.token_ids == (5, 6, 7) and first.key != second.key
    assert first.seed is None and first.supervised == (False, False, True) and first.split == 3
    assert student_step(first.source_name) == 150
    assert score_requests(written, SPEC, 150)[0].key == first.key
