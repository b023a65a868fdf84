"""Steps that are not finite: really poisoned inputs, two real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmdistill.config.train import TrainConfig
from llmdistill.errors import TrainingError
from llmdistill.trainer.checkpoint import checkpoint_folder
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.skipping import SkipLimit, Skipped
from tests.helpers import make_record
from tests.trainer.conftest import BAD_RECORD, POISONED, Trained

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all trainings of `trained`


def tensors(folder: Path) -> list[torch.Tensor]:
    """Every tensor of a checkpoint: weights and optimizer of all ranks."""
    found: list[torch.Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)

    for path in sorted(folder.glob("*.pt")):
        loaded = torch.load(path, map_location="cpu", weights_only=False)
        walk({key: loaded.get(key) for key in ("module", "optimizer", "optimizer_state_dict")})
    return found


@pytest.mark.parametrize(("stage", "precision"), POISONED)
def test_an_infinite_row_skips_its_steps_on_all_ranks(trained: Trained, stage: int, precision: str) -> None:
    name = f"skip-{stage}-{precision}"
    job = trained.jobs[name]
    assert trained.errors[name] == ""
    lines = read_metrics(job.metrics)
    skipped = [line for line in lines if "not_finite" in line]
    assert len(lines) == 6
    assert [line["skipped_steps"] for line in skipped] == [1, 2]
    assert lines[-1]["skipped_steps"] == 2
    key = make_record(BAD_RECORD).key.hex()
    for line in skipped:
        assert line["not_finite"] == ["forward_kl"]
        assert key in line["records"] and len(line["records"]) < 8  # those of one micro-batch, not of the step
        assert "loss" not in line and line["sequence_ce"] > 0
    for line in lines:
        if line["step"] > 1:
            before, after = (tensors(checkpoint_folder(job.checkpoints, line["step"] - back)) for back in (1, 0))
            equal = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
            assert len(equal) > 8
            assert all(equal) == ("not_finite" in line)
    assert all(tensor.isfinite().all() for tensor in after if tensor.is_floating_point())


def test_a_broken_weight_skips_the_steps_that_meet_it(trained: Trained) -> None:
    assert trained.errors["broken"] == ""
    lines = read_metrics(trained.jobs["broken"].metrics)
    skipped = [line for line in lines if "not_finite" in line]
    assert len(lines) == 9
    assert 3 <= len(skipped) < 9
    assert all(line["not_finite"] == ["forward_kl", "sequence_ce"] for line in skipped)
    key = make_record(BAD_RECORD).key.hex()
    assert sum(key in line["records"] for line in skipped) == 3  # once an epoch


def test_more_skipped_steps_than_allowed_end_the_training_and_are_named(trained: Trained) -> None:
    job, message = trained.jobs["strict"], trained.errors["strict"]
    last = read_metrics(trained.jobs["skip-2-fp32"].metrics)
    first_bad = next(line for line in last if "not_finite" in line)
    assert f"forward_kl was not finite in step {first_bad['step']}, as in 1 of the last" in message
    assert "more than train.max_skipped_share allows" in message
    assert all(key in message for key in first_bad["records"])
    assert [line["step"] for line in read_metrics(job.metrics)] == list(range(1, first_bad["step"] + 1))


def test_overflows_of_fp16_are_counted_apart() -> None:
    limit = SkipLimit(TrainConfig(precision="fp16", max_skipped_share=0.0))
    for step in range(1, 51):
        limit.check()
        limit.note(step, Skipped((), ()))
    with pytest.raises(TrainingError, match="50 steps in a row overflowed in fp16, the last is step 50"):
        limit.check()
    limit.note(51, Skipped(("jsd",), ("00",)))
    with pytest.raises(TrainingError, match="jsd was not finite in step 51"):
        limit.check()
