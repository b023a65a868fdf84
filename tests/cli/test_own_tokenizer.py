"""A run whose student has another tokenizer than its teacher: a fake teacher, real tokenizers, a real training."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.cache.stats import cache_stats
from llmdistill.cache.verify import verify
from llmdistill.cli import stages
from llmdistill.cli.teachers import capture_spec
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError
from llmdistill.evaluation.methods import METRICS
from llmdistill.observe.provenance import provenance
from llmdistill.observe.run_folder import RunFolder
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.requests import make_requests
from llmdistill.teacher.fake_engine import FakeEngine
from tests.helpers import save_random_llama
from tests.prompts.makers import make_tokenizer
from tests.student.other_tokenizer import other_tokenizer

MEASURED = {"perplexity", "bits_per_byte", "expected_calibration_error"}


def save_model(folder: Path, tokenizer) -> Path:
    save_random_llama(
        folder, vocab_size=len(tokenizer) + 5, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stages.Run:
    """The teacher has answered; nothing else has happened."""
    folder = tmp_path_factory.mktemp("own_tokenizer")
    teacher, student = save_model(folder / "teacher", make_tokenizer()), save_model(folder / "m", other_tokenizer())
    rows = [{"question": f"What of {n}?", "answer": f"{n} it is."} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {
            "output": str(folder / "run"),
            "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "held_out": 0.4},
            "teacher": {
                "model": str(teacher), "engine": "fake", "max_model_len": 128,
                "sampling": {"max_new_tokens": 24, "temperature": 1.0},
            },
            "capture": {"top_k": 8},
            "student": {"model": str(student), "tokenizer": "own"},
            "objectives": [{"type": "likelihood_matching"}, {"type": "sequence_ce", "weight": 0.1}],
            "train": {
                "max_steps": 4, "epochs": 9, "sequence_length": 256, "tokens_per_step": 1024, "precision": "fp32",
                "zero_stage": 0, "eval_steps": 2, "lr": 0.01,
            },
            "evaluate": {"bootstrap": 50, "samples": 2, "speed": None},
        }
    )  # fmt: skip
    found = stages.Run(config, RunFolder(folder / "run"))
    found.folder.path.mkdir()
    found.folder.config.write_text(config.model_dump_json())
    found.folder.provenance.write_text(json.dumps(provenance()))
    tokenizer = make_tokenizer()
    spec = capture_spec(config, config.teacher, found.tokenizer_folder, tokenizer)
    asked = {"teacher": (config.teacher, spec)}
    requests = make_requests(read_prompts(config.prompts), tokenizer, config.prompts, asked).requests
    engine = FakeEngine(config.teacher, config.capture, len(tokenizer), tokenizer.eos_token_id)
    write_shard(shard_folder(found.folder.cache), [asyncio.run(engine.answer(r)) for r in requests], spec, "fake-1")
    write_index(found.folder.cache)
    return found


@pytest.mark.timeout(600)
def test_a_student_with_its_own_tokenizer_is_trained_exported_and_measured(run: stages.Run) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*launcher, "-m", "llmdistill", "train", str(run.folder.config)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    first, second = CacheReader(run.folder.cache), CacheReader(run.folder.student_cache)
    rejected = (run.folder.student_cache / "rejected.jsonl").read_text().splitlines()
    assert len(second) == len(first) - len(rejected) > 20
    assert all("within its response" in line for line in rejected)
    assert set(second.splits[second.split(0.4)[1]]) <= set(first.splits[first.split(0.4)[1]])
    assert verify(run.folder.student_cache).damaged == []
    stats = cache_stats(run.folder.student_cache)
    assert stats["spec"]["derived_from"]
    assert 0 <= stats["rows_without_teacher"] < stats["rows"]
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    losses = [line["likelihood_matching"] for line in lines if line.get("model") == "student"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    evaluated = [line for line in lines if line.get("model") == "student" and "eval_loss" in line]
    assert [line["step"] for line in evaluated if "eval_likelihood_matching" in line] == [2, 4]

    stages.export(run)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run.folder.student / name).read_bytes() == (Path(str(run.config.student.model)) / name).read_bytes()
    ends = json.loads((run.folder.student / "generation_config.json").read_text())["eos_token_id"]
    assert ends == other_tokenizer().eos_token_id

    stages.evaluate(run)
    document = json.loads(run.folder.evaluation.read_text())
    for values in document["models"].values():
        assert {metric for metric in METRICS if values[metric] is not None} == MEASURED
        low, high = values["intervals"]["bits_per_byte"]
        assert low <= values["bits_per_byte"] <= high
    assert set(document["undefined"]) == set(METRICS) - MEASURED
    assert document["teacher"]["bits_per_byte"] > 0
    assert document["teacher"]["bits_per_byte"] < document["models"]["untrained"]["bits_per_byte"]
    assert set(document["models"]["student"]["by"]["source"]) == {run.config.prompts.sources[0].path}
    stages.report(run)
    page = run.folder.report.read_text()
    assert "Bits per byte" in page
    assert "the student&#39;s tokens are not the teacher&#39;s" in page


def test_without_its_own_tokenizer_it_is_refused_before_the_teacher_is_asked(run: stages.Run) -> None:
    student = run.config.student.model_copy(update={"tokenizer": "teacher"})
    refused = stages.Run(run.config.model_copy(update={"student": student}), run.folder)
    with pytest.raises(ConfigError, match=r"student\.tokenizer: own"):
        stages.generate(refused)


def test_a_student_folder_without_a_tokenizer_is_refused_before_the_teacher_is_asked(
    run: stages.Run, tmp_path: Path
) -> None:
    student = run.config.student.model_copy(update={"model": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        stages.generate(stages.Run(run.config.model_copy(update={"student": student}), run.folder))
