from __future__ import annotations

import pytest
import yaml

from llmdistill.config.run import RunConfig
from llmdistill.export.model_card import model_card

INDEX = {"records": 12, "rows": 345, "spec": {"teacher": "abc123"}}


@pytest.mark.parametrize(
    ("student", "export", "origin"),
    [
        ({"from_teacher": {"layers": 2}}, {}, "cut out of the teacher: layers 2"),
        (
            {"from_teacher": {"parameters": "60M"}},
            {"licence": "apache-2.0"},
            "cut out of the teacher: parameters 60000000",
        ),
        ({"model": "some/model"}, {}, "`some/model`"),
        ({"config": {"model_type": "llama"}}, {}, "random weights"),
        (
            {"model": "some/model", "lora": {"r": 8}},
            {},
            "`some/model`; trained: LoRA of rank 8, alpha 32, merged into the weights",
        ),
    ],
)
def test_the_card_says_where_the_student_comes_from(student: dict, export: dict, origin: str) -> None:
    config = RunConfig.model_validate(
        {
            "output": "runs/x",
            "prompts": {"sources": [{"path": "a.jsonl"}]},
            "teacher": {"model": "some/teacher"},
            "student": student,
            "objectives": [{"type": "forward_kl"}],
            "export": export,
        }
    )
    card = model_card("student", config, INDEX)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert front.get("license") == export.get("licence")
    assert f"| student | {origin} |" in card
    assert "abc123" in card


def test_the_card_names_every_teacher() -> None:
    config = RunConfig.model_validate(
        {
            "output": "runs/x",
            "prompts": {"sources": [{"path": "a.jsonl", "teachers": {"teacher": 1, "code": 1, "law": 1}}]},
            "teacher": {"model": "some/teacher"},
            "teachers": {"code": {"model": "some/coder"}, "law": {"model": "some/lawyer"}},
            "student": {"model": "some/model"},
            "objectives": [{"type": "forward_kl"}],
        }
    )
    captures = [
        {"name": name, "records": records, "spec": {"teacher": teacher}}
        for name, records, teacher in (("code", 5, "def"), ("teacher", 7, "abc"))
    ]
    card = model_card("student", config, {**INDEX, "captures": captures})
    assert "Distilled from `some/teacher`, `some/coder`, `some/lawyer`" in card
    assert "| teacher teacher | `some/teacher`, fingerprint `abc`, 7 records |" in card
    assert "| teacher code | `some/coder`, fingerprint `def`, 5 records |" in card
    assert "| teacher law | `some/lawyer`, no record |" in card
