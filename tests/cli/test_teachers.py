"""Which teachers a run asks, and whose tokenizers are refused."""

import json
import shutil
from pathlib import Path

import pytest

from llmdistill.cli.teachers import asked_teachers
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError
from llmdistill.prompts.render import load_tokenizer


def config(teacher: Path, second: Path, weights: dict[str, float]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": "run",
            "prompts": {"sources": [{"path": "a.jsonl", "teachers": weights}]},
            "teacher": {"model": str(teacher), "engine": "fake"},
            "teachers": {"code": {"model": str(second), "engine": "fake", "dtype": "float32"}},
            "student": {"from_teacher": {"layers": 2}},
            "objectives": [{"type": "forward_kl"}],
        }
    )


@pytest.fixture
def second(tiny_teacher: Path, tmp_path: Path) -> Path:
    """The same teacher in another folder, in case a test changes it."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "second"))


def test_specs_differ_in_who_answers_alone(tiny_teacher: Path, second: Path) -> None:
    shape = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(shape | {"rope_theta": 5e5}))
    both = config(tiny_teacher, second, {"teacher": 1, "code": 1})
    found = asked_teachers(both, tiny_teacher, load_tokenizer(tiny_teacher))
    first, other = found["teacher"].spec, found["code"].spec
    assert first.teacher != other.teacher
    assert (first.dtype, other.dtype) == ("bfloat16", "float32")
    assert (first.tokenizer, first.vocabulary_size) == (other.tokenizer, other.vocabulary_size)
    alone = asked_teachers(config(tiny_teacher, second, {"code": 1}), tiny_teacher, load_tokenizer(tiny_teacher))
    assert {name: one.spec for name, one in alone.items()} == {"code": other}


def test_another_tokenizer_is_refused_with_the_difference(tiny_teacher: Path, second: Path) -> None:
    tokenizer = json.loads((second / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    vocabulary[names[1000]], vocabulary[names[1001]] = 1001, 1000
    (second / "tokenizer.json").write_text(json.dumps(tokenizer))
    both = config(tiny_teacher, second, {"teacher": 1, "code": 1})
    with pytest.raises(ConfigError) as refusal:
        asked_teachers(both, tiny_teacher, load_tokenizer(tiny_teacher))
    assert refusal.value.where == "teachers.code.model"
    assert "2 tokens differ, the first is" in refusal.value.what
    assert "has the id 1000 there and has the id 1001 here" in refusal.value.what


def test_a_token_that_only_one_knows_is_a_difference(tiny_teacher: Path, second: Path) -> None:
    tokenizer = load_tokenizer(second)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(str(second))
    both = config(tiny_teacher, second, {"teacher": 1, "code": 1})
    with pytest.raises(ConfigError, match="'<extra>': it does not exist there and has the id 49152 here"):
        asked_teachers(both, tiny_teacher, load_tokenizer(tiny_teacher))
