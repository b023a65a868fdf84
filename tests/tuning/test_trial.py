"""One trial, and the table of several, without a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmdistill.config.tune import TuneConfig
from llmdistill.errors import TrainingError, WorkerDiedError
from llmdistill.tuning.outcome import Measured, Outcome, read_outcome
from llmdistill.tuning.table import table_rows, tune_document
from llmdistill.tuning.trial import Trial, points_of, run_trial
from tests.trainer.run_ranks import job_for


@pytest.mark.parametrize(
    ("settings", "steps", "points"),
    [
        ({}, 100, ((0.25, 25), (0.75, 75), (1.0, 100))),
        ({"grace": 0.1, "reduction_factor": 10}, 100, ((0.1, 10), (1.0, 100))),
        ({"grace": 1.0}, 7, ((1.0, 7),)),
        ({}, 3, ((0.25, 1), (1.0, 3))),
        ({}, 1, ((1.0, 1),)),
    ],
)
def test_where_a_trial_is_measured(settings: dict[str, float], steps: int, points: tuple[tuple[float, int]]) -> None:
    assert points_of(TuneConfig(**settings), steps) == points


class Work:
    """Stands for training and measuring: notes what it is asked for."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        folder.mkdir(exist_ok=True)
        job = job_for(folder, folder / "cache", folder / "student")
        self.trial = Trial(1, folder, job, ((0.25, 1), (0.75, 3), (1.0, 4)), "kl")
        self.error, self.steps, self.reports = error, [], []

    def run(self, stop_at: float = 2.0) -> None:
        run_trial(self.trial, self._train, lambda job, metric: 10.0 - self.steps[-1], self._reporter(stop_at))

    def _train(self, job) -> None:
        self.steps.append(job.pause)
        if self.error and job.pause > 1:
            raise self.error

    def _reporter(self, stop_at: float):
        def report(share: float, value: float) -> None:
            self.reports.append((share, value))
            if share >= stop_at:
                raise SystemExit

        return report


def test_a_trial_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    first, second = Work(tmp_path), Work(tmp_path)
    with pytest.raises(SystemExit):
        first.run(stop_at=0.25)
    second.run()
    assert first.steps == [1]
    assert second.steps == [3, 4]
    assert second.reports == [(0.25, 9.0), (0.75, 7.0), (1.0, 6.0)]
    third = Work(tmp_path)
    third.run()
    assert (third.steps, third.reports) == ([], second.reports)
    assert read_outcome(tmp_path).end == "whole"


def test_settings_under_which_training_cannot_go_on_are_an_outcome_and_a_dead_worker_is_not(tmp_path: Path) -> None:
    dead = Work(tmp_path / "dead", WorkerDiedError("gone"))
    with pytest.raises(WorkerDiedError):
        dead.run()
    assert read_outcome(tmp_path / "dead").end == ""
    failed = Work(tmp_path / "failed", TrainingError("too many steps were not finite"))
    failed.run()
    outcome = read_outcome(tmp_path / "failed")
    assert (outcome.end, outcome.reason, len(outcome.measured)) == ("failed", "too many steps were not finite", 1)


def test_the_winner_took_the_whole_budget(tmp_path: Path) -> None:
    def outcome(end, *values: float) -> Outcome:
        steps = (1, 3, 4)
        return Outcome(tuple(Measured(0.5, steps[n], v, 1.0) for n, v in enumerate(values)), end, "")

    trial = Work(tmp_path).trial
    outcomes = {0: outcome("whole", 3, 2, 1.5), 1: outcome("early", 1.2), 2: outcome("whole", 3, 2, 1), 3: Outcome(
        (), "failed", "why")}  # fmt: skip
    trials = [Trial(n, trial.folder, trial.job, trial.points, "kl") for n in outcomes]
    document = tune_document(trials, {n: {"train.lr": n / 1000} for n in outcomes}, outcomes)
    assert (document["winner"], document["default"]) == (2, 0)
    assert [line["trial"] for line in document["trials"]] == [2, 1, 0, 3]
    assert [line["stopped_early"] for line in document["trials"]] == [False, True, False, False]
    columns, rows = table_rows(document)
    assert columns == ["trial", "kl", "steps", "", "train.lr"]
    assert rows[0] == ["2", "1.0000", "4/4", "best", "0.002"]
    assert [row[3] for row in rows] == ["best", "stopped early", "as configured", "failed"]
