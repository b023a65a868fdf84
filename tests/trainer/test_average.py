"""The moving average of the weights, through real trainings of two processes at every ZeRO stage that has one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from llmdistill.config.train import TrainConfig
from llmdistill.errors import DataError
from llmdistill.export.huggingface import full_weights, trained_model
from llmdistill.student.creation import load_student
from llmdistill.trainer.checkpoint import checkpoint_folder
from llmdistill.trainer.metrics import read_metrics
from tests.trainer.conftest import Trained
from tests.trainer.run_ranks import run_ranks

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all trainings of `trained`


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_exported_is_the_average_of_the_weights_after_each_step(trained: Trained, stage: int) -> None:
    job = trained.jobs[f"average-{stage}"]
    assert trained.errors[f"average-{stage}"] == ""
    expected = {name: weight.data for name, weight in load_student(job.init, torch.float32).named_parameters()}
    for step in range(1, 7):
        weights = full_weights(checkpoint_folder(job.checkpoints, step))
        expected = {name: 0.7 * average + 0.3 * weights[name] for name, average in expected.items()}
    last = checkpoint_folder(job.checkpoints, 6)
    exported = trained_model(last, job.init)
    averages = full_weights(last, average=True)
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(averages[name], expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parameter.data, averages[name].to(parameter.dtype))
        assert not torch.equal(averages[name], weights[name])
    assert not list(job.checkpoints.glob(".*"))


def test_a_resumed_training_continues_the_average(trained: Trained) -> None:
    assert trained.errors["average-resumed"] == ""
    whole, resumed = trained.jobs["average-2"], trained.jobs["average-resumed"]
    assert [line["step"] for line in read_metrics(resumed.metrics)] == [4, 5, 6]
    pairs = [full_weights(checkpoint_folder(job.checkpoints, 6), average=True) for job in (whole, resumed)]
    for name, average in pairs[0].items():
        torch.testing.assert_close(average, pairs[1][name], rtol=1e-6, atol=1e-7)


def test_another_number_of_workers_is_refused(trained: Trained, tmp_path: Path) -> None:
    job = trained.jobs["average-2"]
    shutil.copytree(job.checkpoints / "step-00000004", tmp_path / "checkpoints" / "step-00000004")
    alone = dataclasses.replace(
        job,
        checkpoints=tmp_path / "checkpoints",
        metrics=tmp_path / "metrics.jsonl",
        train=job.train.model_copy(update={"workers": 1}),
    )
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"continue with train\.workers 2"):
        run_ranks(alone)


def test_a_checkpoint_without_the_average_that_it_should_have_is_refused(trained: Trained) -> None:
    with pytest.raises(DataError, match=r"it holds no average of the weights"):
        full_weights(checkpoint_folder(trained.jobs["skip-2-fp32"].checkpoints, 6), average=True)


def test_stage_0_has_no_average() -> None:
    with pytest.raises(ValueError, match=r"train\.ema_decay: needs a train\.zero_stage of at least 1"):
        TrainConfig(ema_decay=0.9, zero_stage=0)
