"""Real DeepSpeed in real processes: every ZeRO stage and split gives the same losses, and its export loads strictly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import DataError
from llmdistill.export.huggingface import export_student, full_weights
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.trainer.checkpoint import latest_checkpoint
from llmdistill.trainer.metrics import read_metrics
from tests.helpers import make_cache
from tests.trainer.run_ranks import job_for, run_ranks


@pytest.fixture(scope="module")
def inputs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache, and an untrained student of two layers."""
    folder = tmp_path_factory.mktemp("inputs")
    make_cache(folder / "cache", records=24)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), folder / "init")
    return folder / "cache", folder / "init"


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(path)]


@pytest.fixture(scope="module")
def reference(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Two ranks, ZeRO-2."""
    folder = tmp_path_factory.mktemp("reference")
    run_ranks(job_for(folder, *inputs, zero_stage=2))
    found = losses(folder / "metrics.jsonl")
    assert len(found) == 9
    assert found[-1] < 0.8 * found[0]
    return folder, found


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 3, "gradient_checkpointing": True},
        {"zero_stage": 1, "micro_batch_size": 2, "offload_optimizer": "cpu"},
        {"zero_stage": 0, "workers": 1},
    ],
    ids=["zero3-checkpointing", "zero1-micro2-offload", "one-process"],
)
def test_losses_do_not_depend_on_stage_ranks_or_accumulation(
    inputs: tuple[Path, Path], reference: tuple[Path, list[float]], tiny_teacher: Path, tmp_path: Path, settings: dict
) -> None:
    run_ranks(job_for(tmp_path, *inputs, **settings))
    assert losses(tmp_path / "metrics.jsonl") == pytest.approx(reference[1], rel=1e-4)
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    export_student(checkpoint, inputs[1], tmp_path / "student", tiny_teacher, "card")
    reference_weights = full_weights(latest_checkpoint(reference[0] / "checkpoints"))
    exported = load_student(tmp_path / "student", torch.float32)
    untrained = load_student(inputs[1], torch.float32)
    for name, parameter in exported.named_parameters():
        assert parameter.numel()
        torch.testing.assert_close(parameter.data, reference_weights[name].bfloat16().float(), rtol=0.02, atol=2e-3)
    assert not torch.equal(exported.lm_head.weight, untrained.lm_head.weight)


def test_resumed_equals_uninterrupted_and_other_settings_are_refused(
    inputs: tuple[Path, Path], reference: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, expected = reference
    shutil.copytree(folder, tmp_path / "run")
    job = job_for(tmp_path / "run", *inputs, zero_stage=2)
    kept = sorted(path.name for path in job.checkpoints.glob("step-*"))
    assert kept == ["step-00000008", "step-00000009"]
    shutil.rmtree(job.checkpoints / "step-00000009")
    (job.checkpoints / ".step-00000009.tmp").mkdir()  # what a killed run leaves
    run_ranks(job)
    assert losses(job.metrics) == pytest.approx(expected, rel=1e-5)
    assert latest_checkpoint(job.checkpoints).name == "step-00000009"

    from llmdistill.trainer.checkpoint import CheckpointState, read_state, require_same_training

    checkpoint = latest_checkpoint(job.checkpoints)
    found = read_state(checkpoint)
    other = CheckpointState(**{**vars(found), "identity": {**found.identity, "train.lr": 1.0}})
    with pytest.raises(DataError, match=r"train\.lr: the checkpoint has 0\.003, asked is 1\.0"):
        require_same_training(found, other, checkpoint)


@pytest.mark.parametrize(("stage", "first", "then"), [(2, 2, 1), (3, 1, 2)], ids=lambda value: str(value))
def test_another_number_of_workers_continues_at_the_same_sample(
    inputs: tuple[Path, Path], reference: tuple[Path, list[float]], tmp_path: Path, stage: int, first: int, then: int
) -> None:  # case Z4
    job = job_for(tmp_path, *inputs, zero_stage=stage, workers=first)
    run_ranks(job)
    shutil.rmtree(job.checkpoints / "step-00000009")
    lines = read_metrics(job.metrics)
    job = job_for(tmp_path, *inputs, zero_stage=stage, workers=then)
    run_ranks(job)
    again = read_metrics(job.metrics)
    assert again[:8] == lines[:8]
    assert again[8]["loss"] == pytest.approx(reference[1][8], rel=1e-4)
    assert again[8]["learning_rate"] == lines[8]["learning_rate"]
    assert again[8]["grad_norm"] == pytest.approx(lines[8]["grad_norm"], rel=1e-3)
    assert not list(job.checkpoints.glob(".*"))


def test_an_export_with_an_empty_weight_is_refused_by_name(
    inputs: tuple[Path, Path], reference: tuple[Path, list[float]], tiny_teacher: Path, tmp_path: Path, monkeypatch
) -> None:
    import llmdistill.export.huggingface as module

    checkpoint = latest_checkpoint(reference[0] / "checkpoints")
    assert checkpoint is not None
    weights = full_weights(checkpoint)
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.empty(0)
    monkeypatch.setattr(module, "full_weights", lambda checkpoint, average: weights)
    with pytest.raises(DataError, match="q_proj"):
        export_student(checkpoint, inputs[1], tmp_path / "student", tiny_teacher, "card")
    assert not list(tmp_path.iterdir())


def test_metrics_of_repeated_steps_are_replaced(tmp_path: Path) -> None:
    from llmdistill.trainer.metrics import MetricsFile

    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "\n".join(json.dumps({"model": m, "step": s}) for m in ("student", "sft") for s in (1, 2, 3)) + '\n{"cut'
    )
    MetricsFile(path, "student", 1).write(2, {"loss": 1.23456789012})
    assert [(line["model"], line["step"]) for line in read_metrics(path)] == [
        ("student", 1), ("sft", 1), ("sft", 2), ("sft", 3), ("student", 2),
    ]  # fmt: skip
