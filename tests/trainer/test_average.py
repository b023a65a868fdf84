"""The moving average of the weights, through real trainings of two processes at every ZeRO stage."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from llmdistill.errors import DataError
from llmdistill.export.huggingface import full_weights, trained_model
from llmdistill.student.average import AVERAGE, track_average
from llmdistill.student.creation import load_student
from llmdistill.trainer.checkpoint import checkpoint_folder
from llmdistill.trainer.metrics import read_metrics
from tests.trainer.conftest import AVERAGED, Trained
from tests.trainer.run_ranks import run_each

_TAUGHT = ("average-0", "average-3")

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all trainings of `trained`


@pytest.mark.parametrize("name", AVERAGED)
def test_what_is_exported_is_the_average_of_the_weights_after_each_step(trained: Trained, name: str) -> None:
    job = trained.jobs[f"average-{name}"]
    assert trained.errors[f"average-{name}"] == ""
    expected = {name: weight.data for name, weight in load_student(job.init, torch.float32).named_parameters()}
    for step in range(1, 7):
        weights = full_weights(checkpoint_folder(job.checkpoints, step))
        expected = {key: 0.7 * average + 0.3 * weights[key].float() for key, average in expected.items()}
    last = checkpoint_folder(job.checkpoints, 6)
    exported = trained_model(last, job.init)
    averages = full_weights(last, average=True)
    # Stage 0 keeps the weights in 16 bits, and their float32 copy in the optimizer alone.
    tolerance = {"rtol": 5e-3, "atol": 1e-4} if name == "0-bf16" else {"rtol": 1e-5, "atol": 1e-6}
    for key, parameter in exported.named_parameters():
        torch.testing.assert_close(averages[key], expected[key], **tolerance)
        torch.testing.assert_close(parameter.data, averages[key].to(parameter.dtype))
        assert not torch.equal(averages[key], weights[key].float())
    assert not list(job.checkpoints.glob(".*"))


def test_the_average_teaches_alike_at_stages_0_and_3(trained: Trained) -> None:
    found = [[line["self_distillation"] for line in read_metrics(trained.jobs[n].metrics)] for n in _TAUGHT]
    assert abs(found[0][0]) < 1e-4 < found[0][2]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


def test_a_resumed_training_continues_the_average(trained: Trained) -> None:
    assert trained.errors["average-resumed"] == ""
    whole, resumed = trained.jobs["average-2"], trained.jobs["average-resumed"]
    assert [line["step"] for line in read_metrics(resumed.metrics)] == [4, 5, 6]
    pairs = [full_weights(checkpoint_folder(job.checkpoints, 6), average=True) for job in (whole, resumed)]
    for name, average in pairs[0].items():
        torch.testing.assert_close(average, pairs[1][name], rtol=1e-6, atol=1e-7)


def test_another_number_of_workers_continues_the_average(trained: Trained, tmp_path: Path) -> None:
    pairs = []
    for name in ("average-0", "average-2", "average-3"):
        job = trained.jobs[name]
        alone = dataclasses.replace(
            job,
            checkpoints=tmp_path / name / "checkpoints",
            metrics=tmp_path / name / "metrics.jsonl",
            train=job.train.model_copy(update={"workers": 1}),
        )
        shutil.copytree(job.checkpoints / "step-00000004", alone.checkpoints / "step-00000004")
        pairs.append((job, alone))
    assert run_each([alone for _, alone in pairs], tmp_path) == ["", "", ""]
    for job, alone in pairs:
        expected, found = read_metrics(job.metrics)[4:], read_metrics(alone.metrics)
        assert [line["step"] for line in found] == [5, 6]
        for value in ("loss", *(objective.type for objective in job.objectives)):
            # The divergence from the average is of the order of 0.01, a difference of states that are rounded.
            wanted = pytest.approx([line[value] for line in expected], rel=1e-4, abs=1e-5)
            assert [line[value] for line in found] == wanted
        averages = [full_weights(checkpoint_folder(one.checkpoints, 6), average=True) for one in (job, alone)]
        for key, average in averages[0].items():
            # Adam turns rounding of gradients near 0 into steps; the weights themselves are of the order of 0.2.
            torch.testing.assert_close(averages[1][key], average, rtol=1e-4, atol=1e-4)
        assert not list(alone.checkpoints.glob(".*"))


def test_a_checkpoint_without_the_average_that_it_should_have_is_refused(trained: Trained) -> None:
    with pytest.raises(DataError, match=r"it holds no average of the weights"):
        full_weights(checkpoint_folder(trained.jobs["skip-2-fp32"].checkpoints, 6), average=True)

    with pytest.raises(DataError, match=r"it holds no average of the weights"):
        full_weights(checkpoint_folder(trained.jobs["skip-0-fp32"].checkpoints, 6), average=True)


def test_a_step_that_moved_nothing_moves_no_average() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)
    track_average(optimizer, 0.5)
    averages = []
    for skipped in (True, False, True, False):
        weight.grad = torch.ones(4)
        optimizer.found_inf = torch.tensor(float(skipped))
        optimizer.step()
        averages.append(optimizer.state[weight].get(AVERAGE, torch.zeros(4))[0].item())
    assert averages == pytest.approx([0.0, 0.95, 0.95, 0.875])
