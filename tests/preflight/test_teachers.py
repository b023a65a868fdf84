"""Doctor and plan for several teachers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmdistill.preflight.check_run import check_output
from llmdistill.preflight.check_teachers import check_teachers, teacher_views
from llmdistill.preflight.facts import CorpusFacts, OutputFacts
from llmdistill.preflight.volume import corpus_volume, teacher_volumes
from tests.preflight.makers import make_config, make_facts, make_model, make_tokenizer
from tests.preflight.test_doctor import config as one_teacher
from tests.preflight.test_doctor import doctor, problems
from tests.preflight.test_plan import plan

config = one_teacher  # a fixture

CODE = {"model": "second", "engine": "fake", "max_model_len": 200, "sampling": {"max_new_tokens": 100, "samples": 2}}
CORPUS = CorpusFacts(400, True, 4, (10, 20, 150, 30), (0, 0, 0, 0), ("a:1", "a:2", "b:1", "b:2"),
                     teachers=("teacher", "teacher", "code", "code"))  # fmt: skip


def made(**code: Any) -> Any:
    sources = {"sources": [{"path": "a"}, {"path": "b", "teachers": {"code": 1}}]}
    return make_config(prompts=sources, teachers={"code": {**CODE, **code}})


def test_each_teacher_is_judged_by_its_own_rows_and_settings() -> None:
    facts = replace(make_facts(), corpus=CORPUS, further={"code": make_model("second", num_attention_heads=6)})
    found = {one.check: one for one in check_teachers(made(tensor_parallel=4), facts)}
    assert found["lengths"].level == "ok"
    lengths = found["lengths (code)"]
    assert "1 of 2 sampled rows are too long for teachers.code.max_model_len 200 less 100 new" in lengths.what
    assert "b:1 has 150" in lengths.what
    assert "teachers.code.max_model_len=250" in lengths.fix
    assert "teachers.code.tensor_parallel 4 is impossible" in found["tensor parallel (code)"].what
    assert found["tokenizer (code)"].level == "ok"
    assert {"context (code)", "weights (code)", "teacher fleet (code)"} <= found.keys()
    assert not any("trainer" in name for name in found)


@pytest.mark.parametrize(
    ("tokenizer", "level", "what"),
    [
        (make_tokenizer(101), "error", "'t100': it does not exist there and has the id 100 here"),
        (make_tokenizer(template="other"), "warning", "another chat template"),
        (make_tokenizer(end_id=3), "warning", "it ends with 3 ('t3')"),
    ],
)
def test_tokenizers_of_further_teachers_are_held_against_the_first(tokenizer: Any, level: str, what: str) -> None:
    facts = replace(make_facts(), corpus=CORPUS, further={"code": make_model("second", tokenizer)})
    (found,) = [one for one in check_teachers(made(), facts) if one.check == "tokenizer (code)"]
    assert found.level == level
    assert what in found.what


def test_volumes_add_up() -> None:
    config = made()
    volumes = teacher_volumes(config, CORPUS)
    assert volumes["teacher"].records == 200
    assert (volumes["code"].records, volumes["code"].response_tokens) == (200, 20_000)  # one of two fits, two samples
    whole = corpus_volume(config, CORPUS)
    assert whole.tokens == sum(one.tokens for one in volumes.values())
    assert [view.key for view in teacher_views(config, replace(make_facts(), corpus=CORPUS))] == [
        "teacher", "teachers.code",
    ]  # fmt: skip


def test_a_teacher_that_is_gone_or_changed_blocks_the_folder() -> None:
    before = made().model_dump(mode="json")
    output = OutputFacts("runs/x", before, shards=3)
    for changed, what in (
        (make_config(), "teachers.code.model was 'second' and is None"),
        (made(dtype="float32"), "teachers.code.dtype was 'bfloat16' and is 'float32'"),
    ):
        (found,) = check_output(changed, replace(make_facts(), output=output))
        assert found.level == "error"
        assert what in found.what
    (found,) = check_output(made(replicas=3), replace(make_facts(), output=output))
    assert found.level == "warning"


def two(config: Path, second: Path | str) -> list[str]:
    named = f"{{model: {second}, engine: fake, sampling: {{max_new_tokens: 24}}}}"
    return [str(config), f"teachers={{code: {named}}}", "prompts.sources.0.teachers={teacher: 1, code: 2}"]


def test_the_commands_know_every_teacher(config: Path, tiny_teacher: Path, tmp_path: Path, capsys: Any) -> None:
    second = Path(shutil.copytree(tiny_teacher, tmp_path / "second"))
    shape = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 8}))
    status, document, _ = doctor(capsys, *two(config, second))
    assert status == 0
    checks = {item["check"] for item in document["findings"]}
    assert {"tokenizer (code)", "weights (code)", "memory (code)", "lengths (code)", "teacher fleet (code)"} <= checks
    found = plan(capsys, *two(config, second))
    assert set(found["models"]) == {"teacher", "code", "student"}
    assert found["models"]["code"]["parameters"] > found["models"]["teacher"]["parameters"]
    assert set(found["teachers"]) == {"teacher", "code"}
    for name, hours in found["teacher"]["hours"].items():
        assert hours == pytest.approx(sum(one["hours"][name] for one in found["teachers"].values()))
    assert found["teacher"]["flops"] == sum(one["flops"] for one in found["teachers"].values())
    (second / "tokenizer.json").unlink()
    (second / "tokenizer_config.json").unlink()
    status, document, _ = doctor(capsys, *two(config, second))
    assert status == 2
    assert "no tokenizer files" in problems(document)["tokenizer (code)"]["what"]
    status, document, _ = doctor(capsys, *two(config, tmp_path / "absent"))
    assert status == 2
    assert "teachers.code.model" in problems(document)["teacher code"]["what"]
