"""Several teachers in one configuration: what is refused, and the names by which sources are known."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmdistill.config.load import load_config
from llmdistill.config.prompts import SourceConfig
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError

BOTH = {"teacher": 1, "code": 3}


def make(sources: list[dict[str, Any]], **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": "run",
            "prompts": {"sources": sources},
            "teacher": {"model": "a"},
            "teachers": {"code": {"model": "b"}},
            "student": {"from_teacher": {"layers": 2}},
            "objectives": [{"type": "forward_kl"}],
            **sections,
        }
    )


def test_teachers_are_asked_where_a_source_names_them() -> None:
    config = make([{"path": "a.jsonl"}, {"path": "b.jsonl", "teachers": {"code": 1}}])
    assert [(name, one.model) for name, one in config.asked_teachers.items()] == [("teacher", "a"), ("code", "b")]
    alone = make([{"path": "b.jsonl", "teachers": {"code": 1}}])
    assert list(alone.asked_teachers) == ["code"]
    single = make([{"path": "a.jsonl"}], teachers={})
    assert list(single.asked_teachers) == ["teacher"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, r"teachers\.code: no source names it"),
        ({"sources": {"cod": 1}}, r"sources\.0\.teachers\.cod: there is no such teacher; did you mean code\?"),
        ({"sources": {"code": 0}}, "greater than 0"),
        ({"sources": {"teacher": 1}, "teachers": {"teacher": {"model": "b"}}}, "the name of the section teacher"),
        ({"sources": {"A b": 1}, "teachers": {"A b": {"model": "b"}}}, "should match pattern"),
        ({"sources": BOTH, "train": {"soft_labels": "live"}}, r"train\.soft_labels: live: .* teacher, code answer"),
        ({"sources": {"code": 1}, "train": {"soft_labels": "live"}}, "let the section teacher answer all of them"),
        ({"sources": BOTH, "rounds": {"count": 2, "steps": 2, "prompts": 2}}, "rounds: .* scores of one model"),
        ({"sources": BOTH, "objectives": [{"type": "hidden_mse"}]}, "objectives on inner states: .* of one model"),
        (
            {"sources": BOTH, "capture": {"hidden_layers": [1]}, "teacher": {"model": "a", "engine": "huggingface"}},
            r"capture\.hidden_layers: .* of one model",
        ),
        (
            {
                "sources": BOTH,
                "capture": {"kind": "sampled"},
                "teachers": {
                    "code": {"model": "b", "engine": "openai", "server": {"base_url": "http://127.0.0.1:1/v1"}}
                },
            },
            "a server gives the most likely tokens",
        ),
        (
            {
                "sources": BOTH,
                "teacher": {"model": "a", "sampling": {"temperature": 1.0}},
                "objectives": [{"type": "forward_kl", "tail": "ground_truth"}],
            },
            "ground_truth is unbiased only on text",
        ),
        (
            {"sources": BOTH, "train": {"source_weights": {"b": 2}}},
            r"train\.source_weights: no source is called 'b'; they are called a ",
        ),
    ],
)
def test_what_cannot_mean_anything_is_refused(sections: dict[str, Any], message: str) -> None:
    sections = dict(sections)
    with pytest.raises(ValidationError, match=message):
        make([{"path": "a.jsonl", "teachers": sections.pop("sources", {})}], **sections)


def test_evaluation_data_has_no_teacher() -> None:
    with pytest.raises(ValidationError, match="nobody is asked about evaluation data"):
        make([], prompts={"sources": [{"path": "a"}], "decontamination": {"sources": [{"path": "b", "label": "x"}]}})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"path": "data/gsm.jsonl"}, "gsm"),
        ({"path": "s3://bucket/elsewhere/gsm.JSONL.zst"}, "gsm"),
        ({"path": "gsm.v2.json.gz"}, "gsm.v2"),
        ({"path": "chats/"}, "chats"),
        ({"path": "data/chats/*.jsonl"}, "chats"),
        ({"path": "a.jsonl", "label": "math"}, "math"),
        ({"hub": "openai/gsm8k", "name": "main"}, "openai/gsm8k"),
    ],
)
def test_a_source_keeps_its_name_when_its_files_move(source: dict[str, Any], name: str) -> None:
    assert SourceConfig.model_validate(source).known_as == name


def test_a_misspelt_key_of_a_named_teacher_is_named(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(make([{"path": "a.jsonl", "teachers": BOTH}]).model_dump_json())
    with pytest.raises(ConfigError, match=r"teachers\.code\.modl: unknown key; did you mean teachers\.code\.model\?"):
        load_config(path, ["teachers.code.modl=x"])
    assert load_config(path, ["teachers.code.model=x"]).teachers["code"].model == "x"
