"""The command as a person runs it, on folders that hold config.json and a tokenizer and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmdistill.cli.main import call, cli
from llmdistill.student.folder import copy_tokenizer
from tests.preflight.makers import QWEN3_1_7B, QWEN3_32B

GB = 10**9


@pytest.fixture
def config(teacher_folder: Path, tmp_path: Path) -> Path:
    for name, shape in (("teacher", QWEN3_32B), ("student", QWEN3_1_7B)):
        (tmp_path / name).mkdir()
        copy_tokenizer(teacher_folder, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(shape))
    rows = [{"text": f"The number {n} follows {n - 1} and comes before {n + 1}, as all can tell."} for n in range(50)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "output": str(tmp_path / "run"),
        "prompts": {"sources": [{"path": str(tmp_path / "texts.jsonl")}], "mode": "score"},
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"model": str(tmp_path / "student")},
        "capture": {"top_k": 64},
        "objectives": [{"type": "forward_kl"}],
        "train": {"workers": 8, "epochs": 3},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(sections))
    return tmp_path / "config.yaml"


def plan(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    words = ["plan", *map(str, arguments), "--json"]
    assert call(lambda: cli.main(words, standalone_mode=False), debug=False) is not None
    captured = capsys.readouterr()
    assert captured.err == ""
    document: dict[str, Any] = json.loads(captured.out)
    return document


def test_case_t16_a_billion_tokens_against_the_disk(config: Path, capsys: Any) -> None:
    document = plan(capsys, config, "--tokens", "1e9")
    cache = document["cache"]
    assert document["tokens"]["tokens"] == GB
    assert cache["bytes"] == pytest.approx(cache["bytes_per_token"] * 1e9, rel=1e-6)
    # 203 bytes a row of 64 entries, in records of some twenty tokens.
    assert 195 < cache["bytes_per_token"] < 220
    assert cache["full_logits_bytes"] == pytest.approx(document["tokens"]["supervised_rows"] * 49_152 * 2, rel=1e-6)
    assert cache["fits"] == (cache["bytes"] + cache["checkpoints_and_models_bytes"] <= cache["free_bytes"])
    huge = plan(capsys, config, "--tokens", "1e15")["cache"]
    assert not huge["fits"]


def test_models_are_counted_without_weights(config: Path, capsys: Any) -> None:
    document = plan(capsys, config)
    assert document["models"]["teacher"]["parameters"] == 32_762_123_264
    assert document["models"]["student"]["parameters"] == 1_720_574_976
    sizes = document["teacher"]["memory_by_tensor_parallel"]
    assert sizes["1"]["weights"] == 2 * 32_762_123_264
    assert "L40S" not in sizes["1"]["fits"]
    assert "L40S" in sizes["4"]["fits"]
    stages = document["training"]["memory_by_zero_stage"]
    assert stages["0"]["model_states"] == 20 * 1_720_574_976
    assert stages["2"]["model_states"] == 2 * 1_720_574_976 + 18 * 1_720_574_976 // 8


def test_a_cache_pays_from_the_second_epoch_on_in_score_mode(config: Path, capsys: Any) -> None:
    document = plan(capsys, config, "--tokens", "1e9", "--price", "2.5")
    for name, entry in document["cost"]["by_hardware"].items():
        assert document["teacher"]["hours"][name] == pytest.approx(document["teacher"]["live_epoch_hours"][name])
        assert 1 < entry["cache_pays_after_epochs"] < 1.2
        storage = document["cost"]["storage_month"]
        assert entry["money"] == pytest.approx(2.5 * entry["hours"] + storage)
    assert document["training"]["wall_hours"]["H100"] == pytest.approx(document["training"]["hours"]["H100"] / 8)
    assert plan(capsys, config)["cost"]["by_hardware"]["H100"]["money"] is None


def test_named_assumptions_change_the_answer(config: Path, capsys: Any) -> None:
    usual = plan(capsys, config, "--tokens", "1e9")
    fast = plan(capsys, config, "--tokens", "1e9", "--scoring-utilisation", "0.8", "--training-utilisation", "0.7")
    assert usual["teacher"]["hours"]["H100"] == pytest.approx(2 * fast["teacher"]["hours"]["H100"])
    assert usual["training"]["hours"]["H100"] == pytest.approx(2 * fast["training"]["hours"]["H100"])
    assert fast["assumptions"]["utilisation"] == {"scoring": 0.8, "decoding": 0.6, "training": 0.7}


def test_tables_hold_the_same(config: Path, capsys: Any) -> None:
    words = ["plan", str(config), "--tokens", "1e9", "--price", "2.5"]
    call(lambda: cli.main(words, standalone_mode=False), debug=False)
    out = capsys.readouterr().out
    for part in (
        "32.8 G parameters",
        "1.72 G parameters",
        "bytes a token",
        "H200",
        "from epoch 2",
        "2 (chosen)",
        "L40S",
    ):
        assert part in out


def test_what_cannot_be_planned_is_said(config: Path, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    (tmp_path / "teacher" / "tokenizer_config.json").unlink()
    assert call(lambda: cli.main(["plan", str(config)], standalone_mode=False), debug=False) == 3
    assert "no tokenizer files" in capsys.readouterr().err


def test_measuring_shows_what_each_k_keeps(config: Path, tiny_teacher: Path, capsys: Any) -> None:
    student = f"student={{model: {tiny_teacher}}}"
    measured = plan(capsys, config, f"teacher.model={tiny_teacher}", student, "--measure")["measured"]
    assert measured["configured_k"] == 64
    assert [entry["k"] for entry in measured["by_k"]] == [8, 16, 32, 64, 128]
    for smaller, larger in zip(measured["by_k"], measured["by_k"][1:], strict=False):
        assert 0 < smaller["mass_mean"] < larger["mass_mean"] < 1
        assert smaller["kl"] > larger["kl"] > 0
        assert smaller["bytes_per_row"] < larger["bytes_per_row"]
    generated = plan(
        capsys, config, f"teacher.model={tiny_teacher}", student, "prompts.mode=generate",
        "teacher.sampling.max_new_tokens=8", "--measure",
    )  # fmt: skip
    assert generated["measured"]["rows"] == 8 * 8


def test_rounds_cost_what_the_student_writes_and_the_teacher_scores(config: Path, capsys) -> None:
    sections = json.loads(config.read_text())
    sections["rounds"] = {"count": 4, "steps": 10, "prompts": 20, "sampling": {"max_new_tokens": 100}}
    config.write_text(json.dumps(sections))
    found = plan(capsys, config)
    rounds, cost = found["rounds"], found["cost"]["by_hardware"]
    assert rounds["records"] == 80
    per_record = found["tokens"]["prompt_tokens"] / found["tokens"]["records"]
    assert rounds["tokens"] == pytest.approx(80 * (100 + per_record), rel=0.01)
    for name, hours in cost.items():
        parts = [rounds["student_hours"][name], rounds["teacher_hours"][name]]
        parts += [found["teacher"]["hours"][name], found["training"]["hours"][name]]
        assert min(parts) > 0
        assert hours["hours"] == pytest.approx(sum(parts))
    flops, files = found["training"]["flops"], found["cache"]["checkpoints_and_models_bytes"]
    sections["rounds"]["count"] = 8
    config.write_text(json.dumps(sections))
    doubled = plan(capsys, config)
    assert doubled["training"]["flops"] == pytest.approx(2 * flops), "steps say how long it is, not epochs"
    more = doubled["cache"]["checkpoints_and_models_bytes"] - files
    assert 80 * 100 * 150 < more < 80 * 100 * 300, "as many bytes a written token as a supervised row takes"
