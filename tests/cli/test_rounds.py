"""Training in rounds, as a person runs it: killed while the student writes, the teacher scores, and it trains."""

import json
from pathlib import Path

import pytest

from llmdistill.cache.index import open_shards
from llmdistill.cluster import enable_token
from llmdistill.types import student_step
from tests.test_end_to_end import call, kill_when, write_config

ROUNDS, STEPS, PROMPTS = 3, 6, 24


@pytest.mark.timeout(600)
def test_killed_in_every_phase_and_continued(tiny_teacher: Path, tmp_path: Path) -> None:
    config = str(
        write_config(
            tmp_path,
            tiny_teacher,
            train={"workers": 1, "save_steps": 2, "save_total_limit": 1},
            evaluate={"baseline": False},
            rounds={
                "count": ROUNDS,
                "steps": STEPS,
                "prompts": PROMPTS,
                "on_policy": [0.5, 1.0],
                "replay": 0.25,
                "engine": "fake",
                "sampling": {"max_new_tokens": 24, "temperature": 1.0},
            },
        )
    )
    run = tmp_path / "run"
    assert call("generate", config).returncode == 0

    def shards(number: int, name: str) -> int:
        return len(list(run.glob(f"rounds/{number:04d}/{name}/shards/*.safetensors")))

    def steps() -> list[int]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line.get("model") == "student"]

    kill_when(lambda: shards(0, "rollouts") > 0, "train", config)
    assert not (run / "checkpoints").exists()
    kill_when(lambda: shards(0, "cache") > 0, "train", config)
    kill_when(lambda: (run / "checkpoints" / f"step-{STEPS + 2:08d}").is_dir(), "train", config)
    changed = call("train", config, "rounds.sampling.temperature=0.9")
    assert changed.returncode == 3 and "rounds belong to a training with other settings" in changed.stderr
    finished = call("train", config)
    assert finished.returncode == 0, finished.stderr
    assert "the trainers waited" in finished.stderr

    assert steps() == list(range(1, ROUNDS * STEPS + 1))
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rounds = {line["round"]: line for line in lines if line.get("stage") == "round"}
    assert rounds[1]["student_step"] == STEPS and rounds[1]["records"] == PROMPTS
    for number in range(ROUNDS):
        for name in ("rollouts", "cache"):
            keys = [
                bytes(key)
                for shard in open_shards(run / "rounds" / f"{number:04d}" / name)
                for key in shard.stored("keys")
            ]
            assert len(keys) == len(set(keys)) == PROMPTS, "each once"
        sources = {
            source for shard in open_shards(run / "rounds" / f"{number:04d}" / "cache") for source in shard.sources
        }
        assert [student_step(source) for source in sources] == [number * STEPS]
    again = call("train", config)
    assert again.returncode == 0 and steps() == list(range(1, ROUNDS * STEPS + 1))


@pytest.mark.timeout(600)
def test_a_round_ahead_by_engines_that_stay(tiny_teacher: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ahead = {"count": 3, "steps": 2, "prompts": 8, "ahead": True, "engine": "fake", "sampling": {"max_new_tokens": 8}}
    path = write_config(
        tmp_path,
        tiny_teacher,
        teacher={"replicas": 1},
        train={"workers": 1, "save_steps": 1, "save_total_limit": 1},
        evaluate={"baseline": False},
        rounds=ahead,
    )
    refused = call("run", str(path), "train.workers=640", "train.tokens_per_step=81920")
    assert refused.returncode == 4, refused.stderr
    assert "and 640 training workers at once: 642 " in refused.stderr and "to work in turn" in refused.stderr

    enable_token()  # before the cluster starts, so that both sides agree
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    try:
        done = call("train", str(path), f"cluster.address={cluster.address}")
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rounds = [line for line in lines if line.get("stage") == "round"]
    assert [line["student_step"] for line in rounds] == [0, 0, 2], "the student of the start of the round before"
    assert [line["oldest_at_end"] for line in rounds] == [2, 4, 4]
    assert rounds[0]["student_start_seconds"] > 0 and rounds[1]["student_start_seconds"] == 0, "engines stay"
    assert rounds[1]["teacher_start_seconds"] == 0
    assert rounds[1]["push_seconds"] == 0 and rounds[2]["push_seconds"] > 0
    assert not list(run.glob("rounds/*/weights.safetensors"))
