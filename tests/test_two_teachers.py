"""One run with two teachers, as a person runs it: killed between the two, continued, trained on, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmdistill.cache.index import open_shards, read_captures
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.stats import cache_stats
from llmdistill.cli import main
from llmdistill.student.folder import copy_tokenizer
from llmdistill.trainer.metrics import read_metrics
from tests.helpers import save_random_llama
from tests.test_end_to_end import call, keys, kill_when, write_config


@pytest.fixture
def second_teacher(teacher_folder: Path, tmp_path: Path) -> Path:
    """Another random model with the same tokenizer."""
    folder = save_random_llama(
        tmp_path / "second",
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    copy_tokenizer(teacher_folder, folder)
    return folder


def two_teachers(folder: Path, first: Path, second: Path) -> Path:
    """Prompts of one source for the first, of another for both."""
    path = write_config(
        folder,
        first,
        train={"max_steps": 2, "epochs": 1, "workers": 1, "source_weights": {"code": 2.0}},
        evaluate={"baseline": False, "speed": None, "bootstrap": 20},
    )
    config = yaml.safe_load(path.read_text())
    rows = [{"prompt": f"Write a function that returns {number}."} for number in range(40)]
    (folder / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["teachers"] = {
        "code": {
            **config["teacher"],
            "model": str(second),
            "filters": {"max_repetition": 1.0},
            "sampling": {"max_new_tokens": 12, "temperature": 0.5},
        }
    }
    prompts = config["prompts"]["sources"][0]
    config["prompts"]["sources"] = [
        {**prompts, "label": "chat", "limit": 20},
        {"path": str(folder / "code.jsonl"), "teachers": {"teacher": 1, "code": 2}},
    ]
    path.write_text(yaml.safe_dump(config))
    return path


def generate_here(config: str, *overrides: str) -> int:
    """The command's status, without a process of its own: for calls that are refused before any work."""
    return main.call(lambda: main.cli.main(["generate", config, *overrides], standalone_mode=False), debug=False)


@pytest.mark.timeout(900)
def test_killed_between_two_teachers_the_same_command_finishes(
    tiny_teacher: Path, second_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(two_teachers(tmp_path, tiny_teacher, second_teacher))
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert call("generate", config, f"output={calm}").returncode == 0
    first, second = read_captures(calm / "cache")
    assert (first.name, second.name) == ("teacher", "code")
    assert first.records + second.records == 60
    assert min(first.records - 20, second.records) > 0

    def shards() -> list[Path]:
        return sorted(run.glob("cache/shards/*.safetensors"))

    kill_when(lambda: len(shards()) == first.shards, "generate", config)
    before = {path: path.stat().st_mtime_ns for path in shards()}
    assert {shard.spec.teacher for shard in open_shards(run / "cache")} == {first.spec.teacher}
    finished = call("run", config)
    assert finished.returncode == 0, finished.stderr
    assert "generate code: " in finished.stderr
    assert "generate teacher: " not in finished.stderr
    assert keys(run) == keys(calm)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in shards()}.items()

    found = {one["name"]: one for one in cache_stats(run / "cache")["teachers"]}
    for capture in (first, second):
        assert found[capture.name]["records"] == capture.records
        assert found[capture.name]["tokens"] == capture.tokens
    reader = CacheReader(run / "cache")
    assert {name: (reader.source_numbers == n).sum() for n, name in enumerate(reader.sources)} == {
        "chat": 20, "code": 40,
    }  # fmt: skip
    lines = read_metrics(run / "metrics.jsonl")
    done = {line["teacher"]: line["records"] for line in lines if line["stage"] == "generate"}
    assert done["code"] == second.records
    assert sum(line["stage"] == "train" for line in lines) == 2
    assert json.loads((run / "provenance.json").read_text())["teachers"] == {
        "teacher": str(tiny_teacher), "code": str(second_teacher),
    }  # fmt: skip
    card, page = (run / "student" / "README.md").read_text(), (run / "report.html").read_text()
    for capture in (first, second):
        assert f"| teacher {capture.name} | `" in card
        assert capture.spec.teacher in card
        assert capture.spec.teacher in page
        assert f"{capture.name} {capture.records} records" in page

    for change, message in (
        ("capture.top_k=8", "top_k: the cache has 16, asked is 8"),
        ("teachers.code.sampling.temperature=0.7", "'temperature': 0.5"),
        ("teachers.code.dtype=float32", "dtype: the cache has 'bfloat16', asked is 'float32'"),
        (f"teachers.code.model={tiny_teacher}", f"teacher: the cache has '{second.spec.teacher}'"),
    ):
        assert generate_here(config, change) == 3, change
        assert message in capsys.readouterr().err
    assert generate_here(config, "teachers={}", "prompts.sources.1.teachers={}") == 3
    left_out = f"teacher: the cache has '{second.spec.teacher}', asked is '{first.spec.teacher}'"
    assert left_out in capsys.readouterr().err
    assert keys(run) == keys(calm)
