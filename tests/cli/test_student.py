"""The stage that makes the student: from the cache's own records, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.cli import stages
from llmdistill.cli.student import calibration_sequences, make_untrained
from llmdistill.config.run import RunConfig
from llmdistill.errors import DataError
from llmdistill.observe.run_folder import RunFolder
from tests.helpers import make_cache


def make_run(folder: Path, teacher: Path, student: dict[str, Any]) -> stages.Run:
    config = RunConfig.model_validate(
        {
            "output": str(folder),
            "prompts": {"sources": [{"path": "unused.jsonl"}]},
            "teacher": {"model": str(teacher)},
            "student": student,
            "objectives": [{"type": "forward_kl"}],
        }
    )
    return stages.Run(config, RunFolder(folder))


def test_a_number_of_parameters_is_all_that_must_be_given(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, tiny_teacher, {"from_teacher": {"parameters": "1.6M"}})
    make_cache(run.folder.cache)
    make_untrained(run)
    student = AutoModelForCausalLM.from_pretrained(str(run.folder.untrained), dtype="auto")
    assert sum(parameter.numel() for parameter in student.parameters()) == pytest.approx(1.6e6, rel=0.05)
    assert student.dtype == torch.bfloat16
    shown = capsys.readouterr().err
    assert "train: chosen" in shown
    assert "the student keeps layers" in shown
    make_untrained(run)
    assert not capsys.readouterr().err


def test_importance_is_measured_on_training_records(tiny_teacher: Path, tmp_path: Path) -> None:
    wanted = {"from_teacher": {"hidden_size": 32, "calibration": {"records": 3, "tokens": 7}}}
    run = make_run(tmp_path, tiny_teacher, wanted)
    records = make_cache(run.folder.cache)
    sequences = list(calibration_sequences(run))
    assert len(sequences) == 3
    starts = {tuple(record.token_ids_N[:7].tolist()): record for record in records}
    assert all(starts[tuple(sequence)].split >= 0.1 * 2**64 for sequence in sequences)


def test_without_a_cache_only_what_is_measured_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    make_untrained(make_run(tmp_path / "depth", tiny_teacher, {"from_teacher": {"layers": 2}}))
    with pytest.raises(DataError, match="the cache holds no shard"):
        make_untrained(make_run(tmp_path / "width", tiny_teacher, {"from_teacher": {"hidden_size": 32}}))
