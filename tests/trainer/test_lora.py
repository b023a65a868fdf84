"""Adapters through real trainings: every ZeRO stage gives the same losses, and what is exported has them merged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.config.student import FromTeacherConfig, LoRAConfig
from llmdistill.errors import ConfigError
from llmdistill.export.huggingface import export_student, full_weights, trained_model
from llmdistill.student.adapters import add_adapters, merge_adapters
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.trainer.checkpoint import checkpoint_folder
from llmdistill.trainer.data import collate
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.loop import make_module
from llmdistill.trainer.metrics import read_metrics
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for, run_each, run_ranks
from tests.trainer.test_live_teacher import parse

pytestmark = pytest.mark.timeout(300)  # whichever comes first waits for all trainings of `runs`

LORA = LoRAConfig(r=4, lora_alpha=16)


@pytest.fixture(scope="module")
def inputs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache, and an untrained student of two layers with tied embeddings."""
    folder = tmp_path_factory.mktemp("lora-inputs")
    make_cache(folder / "cache", records=24)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), folder / "init")
    return folder / "cache", folder / "init"


@pytest.fixture(scope="module")
def runs(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainJob]:
    """Trainings of two processes, one after the other; `resumed` begins with a checkpoint of the first."""
    folder = tmp_path_factory.mktemp("lora")
    settings = {
        "2": {"zero_stage": 2, "save_total_limit": 9},
        "0": {"zero_stage": 0},
        "1": {"zero_stage": 1, "micro_batch_size": 2},
        "3": {"zero_stage": 3, "gradient_checkpointing": True},
        "resumed": {"zero_stage": 2, "save_total_limit": 9},
        "ema": {"zero_stage": 3, "ema_decay": 0.5, "save_steps": 1, "save_total_limit": 9},
    }
    jobs = {
        name: dataclasses.replace(job_for(folder / name, *inputs, lr=1e-2, epochs=2, **chosen), lora=LORA)
        for name, chosen in settings.items()
    }
    jobs["ema"] = dataclasses.replace(
        jobs["ema"], objectives=parse({"type": "forward_kl"}, {"type": "self_distillation", "model": "ema"})
    )
    jobs["resumed"].checkpoints.mkdir(parents=True)
    # There when its turn has come.
    (jobs["resumed"].checkpoints / "step-00000004").symlink_to(jobs["2"].checkpoints / "step-00000004")
    (folder / "errors").mkdir()
    assert run_each(list(jobs.values()), folder / "errors") == [""] * len(jobs)
    return jobs


def losses(job: TrainJob, name: str = "loss") -> list[float]:
    return [line[name] for line in read_metrics(job.metrics)]


def test_losses_do_not_depend_on_the_stage_and_resuming_continues(runs: dict[str, TrainJob]) -> None:
    expected = losses(runs["2"])
    assert len(expected) == 6
    assert expected[-1] < 0.97 * expected[0]
    for stage in ("0", "1", "3"):
        assert losses(runs[stage]) == pytest.approx(expected, rel=1e-4)
    assert losses(runs["resumed"]) == pytest.approx(expected[4:], rel=1e-5)
    norms = losses(runs["2"], "grad_norm")
    assert losses(runs["3"], "grad_norm") == pytest.approx(norms, rel=1e-3)


def test_another_number_of_workers_continues(runs: dict[str, TrainJob], tmp_path: Path) -> None:
    job = runs["2"]
    alone = dataclasses.replace(
        job,
        checkpoints=tmp_path / "checkpoints",
        metrics=tmp_path / "metrics.jsonl",
        train=job.train.model_copy(update={"workers": 1}),
    )
    shutil.copytree(job.checkpoints / "step-00000004", alone.checkpoints / "step-00000004")
    run_ranks(alone)
    assert losses(alone) == pytest.approx(losses(job)[4:], rel=1e-4)


@pytest.mark.parametrize("name", ["0", "2", "3"])
def test_checkpoints_hold_adapters_alone_and_the_export_has_them_merged(
    runs: dict[str, TrainJob], inputs: tuple[Path, Path], tiny_teacher: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = checkpoint_folder(runs[name].checkpoints, 6)
    adapters = full_weights(checkpoint)
    assert {key.rpartition(".lora_")[2] for key in adapters if ".lora_" in key} == {
        "A.default.weight", "B.default.weight",
    }  # fmt: skip
    # 49,152 × 64 embeddings alone would be more.
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 2**20
    export_student(checkpoint, inputs[1], tmp_path / "student", tiny_teacher, "card")
    exported, untrained = (load_student(f, torch.float32) for f in (tmp_path / "student", inputs[1]))
    before, after = untrained.state_dict(), exported.state_dict()
    assert set(before) == set(after)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if "_proj.weight" in key}
    for key in changed:
        stem = key.removesuffix(".weight")
        product = adapters[f"{stem}.lora_B.default.weight"] @ adapters[f"{stem}.lora_A.default.weight"]
        torch.testing.assert_close(after[key], (before[key] + 4.0 * product).bfloat16().float(), rtol=0.02, atol=2e-3)


def test_merged_weights_give_the_logits_of_the_adapted_model(inputs: tuple[Path, Path]) -> None:
    tokens = torch.arange(20)[None]
    adapted = add_adapters(load_student(inputs[1], torch.float32), LORA, 0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        logits = adapted(tokens).logits
        merged = merge_adapters(adapted)
        torch.testing.assert_close(merged(tokens).logits, logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(load_student(inputs[1], torch.float32)(tokens).logits, logits, atol=1e-2)
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())


def test_the_average_of_adapters_teaches_and_is_exported(runs: dict[str, TrainJob]) -> None:
    job = runs["ema"]
    calm = losses(job, "self_distillation")
    assert abs(calm[0]) < 1e-4 < calm[2]
    steps = [full_weights(checkpoint_folder(job.checkpoints, step)) for step in range(1, 7)]
    start = make_module(job, SPEC.vocabulary_size).student.state_dict()
    average = full_weights(checkpoint_folder(job.checkpoints, 6), average=True)
    for name, value in average.items():
        expected = start[name]
        for weights in steps:
            expected = 0.5 * expected + 0.5 * weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    exported = trained_model(checkpoint_folder(job.checkpoints, 6), job.init)
    assert not any("lora" in name for name in exported.state_dict())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_gets_a_gradient(inputs: tuple[Path, Path], tmp_path: Path, checkpointing: bool) -> None:
    # Nothing before the first adapter is trained, so a checkpointed block's input has no gradient.
    job = dataclasses.replace(job_for(tmp_path, *inputs, gradient_checkpointing=checkpointing), lora=LORA)
    module = make_module(job, SPEC.vocabulary_size)
    module(collate(CacheReader(job.cache), [(0, 1)], 40))[0].backward()
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 2
    for name, weight in trained.items():
        assert weight.grad is not None
        # The product of both is 0 at first, and B is the factor that is.
        assert bool(weight.grad.any()) == ("lora_B" in name)
    assert all(weight.grad is None for name, weight in module.named_parameters() if name not in trained)


@pytest.mark.parametrize(
    ("modules", "message"), [(("lm_head", "q_proj"), "fused head"), (("embed_tokens",), "fused head"), (("w1",), "w1")]
)
def test_modules_that_cannot_have_adapters_are_refused(
    inputs: tuple[Path, Path], modules: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        add_adapters(load_student(inputs[1], torch.float32), LoRAConfig(target_modules=modules), 0)


def test_another_rank_is_another_training(runs: dict[str, TrainJob]) -> None:
    state = json.loads((checkpoint_folder(runs["2"].checkpoints, 6) / "state.json").read_text())
    assert state["identity"]["student.lora"]["r"] == 4
    other = dataclasses.replace(runs["2"], lora=LoRAConfig(r=8))
    assert other.identity("")["student.lora"] != state["identity"]["student.lora"]
