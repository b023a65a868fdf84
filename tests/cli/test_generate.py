"""The generate stage on a cache that lacks nothing: what it says and lists about the rows of the corpus."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.cache.index import shard_folder
from llmdistill.cache.shard import write_shard
from llmdistill.cli import stages
from llmdistill.cli.pipeline import PIPELINE, fingerprint
from llmdistill.cli.teachers import capture_spec
from llmdistill.config.run import RunConfig
from llmdistill.observe.run_folder import RunFolder
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.render import load_tokenizer
from llmdistill.prompts.requests import make_requests
from tests.helpers import make_record


def configuration(folder: Path, teacher: Path, **prompts) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(folder / "run"),
            "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], **prompts},
            "teacher": {"model": str(teacher), "engine": "fake"},
            "student": {"from_teacher": {"layers": 2}},
            "objectives": [{"type": "forward_kl"}],
        }
    )


def test_rows_that_are_not_used_are_counted_by_reason_and_listed(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "a"},
        {"prompt": "a"},
        {"prompt": 3},
        {"prompt": "b<|im_end|>"},
        {"prompt": ["c", "d"]},
        {"prompt": None},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = stages.Run(configuration(tmp_path, tiny_teacher), RunFolder(tmp_path / "run"))
    tokenizer = load_tokenizer(tiny_teacher)
    spec = capture_spec(run.config, run.config.teacher, tiny_teacher, tokenizer)
    asked = {"teacher": (run.config.teacher, spec)}
    corpus = make_requests(read_prompts(run.config.prompts), tokenizer, run.config.prompts, asked)
    records = [
        replace(make_record(number, k=64, vocabulary_size=len(tokenizer)), key=request.key)
        for number, request in enumerate(corpus.requests)
    ]
    records.append(make_record(99, k=64, vocabulary_size=len(tokenizer)))
    write_shard(shard_folder(run.folder.cache), records, spec, "fake-1")
    stages.generate(run)
    said = capsys.readouterr().err
    assert "generate: 1 records of the cache answer no prompt of this configuration" in said
    assert "generate: 1 rows: control tokens escaped" in said
    assert "generate: 1 rows: later user turns are not asked" in said
    assert "generate: 3 rows were not used (2 empty or no text, 1 duplicate), see" in said
    lines = [json.loads(line) for line in run.folder.rejected.read_text().splitlines()]
    assert [line["source"].rsplit(":", 1)[1] for line in lines] == ["2", "3", "6"]


def test_the_stage_runs_again_when_prompts_or_evaluation_data_change(tmp_path: Path) -> None:
    for name in ("prompts", "evaluation"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    config = configuration(
        tmp_path, tmp_path, decontamination={"sources": [{"path": str(tmp_path / "evaluation.jsonl")}]}
    )
    seen = {fingerprint(config, PIPELINE[0], "")}
    assert fingerprint(config, PIPELINE[0], "") in seen
    for name in ("prompts", "evaluation"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "b"}\n')
        seen.add(fingerprint(config, PIPELINE[0], ""))
    assert len(seen) == 3
