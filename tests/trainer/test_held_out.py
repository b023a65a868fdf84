"""The best checkpoint and the early end."""

from __future__ import annotations

import pytest

from llmdistill.config.train import TrainConfig
from llmdistill.errors import DataError
from llmdistill.trainer.checkpoint import checkpoint_to_export, latest_checkpoint, read_state
from llmdistill.trainer.held_out import Best, best_so_far
from llmdistill.trainer.metrics import read_metrics
from tests.trainer.conftest import Trained

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for all trainings of `trained`


def test_the_best_checkpoint_stays_and_training_ends_when_it_does_not_get_better(trained: Trained) -> None:
    assert trained.errors["early"] == trained.errors["early-again"] == ""
    job = trained.jobs["early"]
    lines = read_metrics(job.metrics)
    values = [line["eval_loss"] for line in lines]
    best = values.index(min(values)) + 1
    assert lines[0]["eval_loss"] == pytest.approx(
        0.9 * lines[0]["eval_forward_kl"] + 0.1 * lines[0]["eval_sequence_ce"]
    )
    assert len(lines) == best + 2 < lines[0]["total_steps"]  # and a second call added nothing
    newest = latest_checkpoint(job.checkpoints)
    assert newest is not None and read_state(newest).step == len(lines)
    kept = sorted(path.name for path in job.checkpoints.glob("step-*"))
    assert kept == [f"step-{best:08d}", f"step-{len(lines):08d}"]
    assert checkpoint_to_export(job.checkpoints, best=True) == job.checkpoints / kept[0]
    assert checkpoint_to_export(job.checkpoints, best=False) == newest


def test_a_best_checkpoint_that_is_asked_for_and_missing_is_an_error(trained: Trained) -> None:
    with pytest.raises(DataError, match=r"no evaluation was recorded, and train\.load_best_model_at_end asks for it"):
        checkpoint_to_export(trained.jobs["skip-2-fp32"].checkpoints, best=True)


def test_the_record_of_the_best() -> None:
    train = TrainConfig(early_stopping_patience=2, eval_steps=1, metric_for_best_model="eval_jsd")
    best = Best("eval_jsd").after(10, float("nan")).after(20, 2.0).after(30, 2.0)
    assert best == Best("eval_jsd", 20, 2.0, 1)
    assert not best.ends(train)
    assert best.after(40, 3.0).ends(train)
    assert best_so_far(train, vars(best)) == best
    assert best_so_far(train, {**vars(best), "metric": "eval_loss"}) == Best("eval_jsd")
