"""The real command on a fake teacher and a tiny student: killed, continued, and repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmdistill.cache.reader import CacheReader
from llmdistill.config.load import load_config
from tests.test_end_to_end import call, kill_when, write_config

SEARCH = {
    "train.lr": {"log_uniform": [1.0e-4, 1.0e-2]},
    "student.from_teacher.choose_layers": {"choice": ["uniform", "first_last"]},
}


@pytest.mark.timeout(600)
def test_the_best_settings_come_out_and_no_finished_trial_is_repeated(tiny_teacher: Path, tmp_path: Path) -> None:
    tune = {"trials": 3, "budget": 0.2, "grace": 0.5, "reduction_factor": 2, "seed": 1, "search": SEARCH}
    config = write_config(tmp_path, tiny_teacher, train={"workers": 1}, tune=tune)
    run = tmp_path / "run"
    for name in ("checkpoints", "student"):
        (run / name).mkdir(parents=True)
        (run / name / "mine").write_text(name)

    def outcomes() -> dict[Path, dict]:
        found = {path: json.loads(path.read_text()) for path in run.glob("tune/trials/*/outcome.json")}
        return {path: outcome for path, outcome in found.items() if outcome["end"]}

    kill_when(lambda: bool(outcomes()), "tune", str(config))
    before = {path: path.stat().st_mtime_ns for path in outcomes()}
    assert len(before) < 3, "it was killed too late to show anything"
    continued = call("tune", str(config), "--json", "--output", str(tmp_path / "better"))
    assert continued.returncode == 0, continued.stderr
    document = json.loads(continued.stdout)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert document | {"trials": None} == json.loads((run / "tune" / "table.json").read_text()) | {"trials": None}

    trials = document["trials"]
    assert sorted(line["trial"] for line in trials) == [0, 1, 2]
    whole = [line for line in trials if not line["stopped_early"]]
    assert document["winner"] == min(whole, key=lambda line: line["value"])["trial"]
    assert [line["value"] for line in trials] == sorted(line["value"] for line in trials)
    default = next(line for line in trials if line["trial"] == 0)
    assert default["settings"] == {"train.lr": 3.0e-3, "student.from_teacher.choose_layers": "uniform"}
    assert default["steps"] == default["budget_steps"] > 1  # it is never stopped
    assert all(line["steps"] == (1 + line["budget_steps"]) // 2 for line in trials if line["stopped_early"])
    choices = {line["settings"]["student.from_teacher.choose_layers"] for line in trials}
    assert len(list(run.glob("tune/students/*"))) == len(choices)  # equal ones are made once

    best = load_config(run / "tune" / "best.yaml")
    winner = next(line for line in trials if line["trial"] == document["winner"])
    assert best.train.lr == winner["settings"]["train.lr"]
    assert (best.output, best.tune, best.train.max_steps) == (str(tmp_path / "better"), None, None)
    assert CacheReader(tmp_path / "better" / "cache").keys == CacheReader(run / "cache").keys
    assert yaml.safe_load((run / "tune" / "best.yaml").read_text())["objectives"][0]["weight"] == 0.9
    for name in ("checkpoints", "student"):
        assert [path.read_text() for path in (run / name).iterdir()] == [name]

    again = call("tune", str(config), timeout=100)
    assert again.returncode == 0, again.stderr
    assert "as configured" in again.stdout and "llmdistill run" in again.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_temperature_that_was_not_captured_is_refused_before_anything_runs(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    search = {"objectives.forward_kl.temperature": {"choice": [1.0, 2.0]}}
    config = write_config(tmp_path, tiny_teacher, tune={"search": search})
    answer = call("tune", str(config), timeout=100)
    assert answer.returncode == 2
    assert "add 2 to capture.temperatures" in answer.stderr
    assert not (tmp_path / "run").exists()
