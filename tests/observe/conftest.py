"""A small run's folder whose figures are made up but consistent: no teacher, no training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.cache.reader import CacheReader
from llmdistill.config.run import RunConfig
from llmdistill.evaluation.heldout import RowTable
from llmdistill.evaluation.intervals import Bootstrap
from llmdistill.evaluation.summary import summarise
from llmdistill.observe.provenance import provenance
from llmdistill.observe.run_folder import RunFolder
from tests.helpers import make_cache

MakeRun = Callable[..., RunFolder]


def _table(reader: CacheReader, records: np.ndarray, kl: float, rng: np.random.Generator) -> RowTable:
    rows = int(reader.row_counts[records].sum())
    record_R = np.repeat(np.arange(len(records)), reader.row_counts[records])
    kl_R = rng.gamma(2, kl / 2, rows)
    confidence_R = rng.uniform(0.05, 1, rows)
    values = {
        "kl": kl_R,
        "reverse_kl": kl_R * 0.9,
        "top1_agreement": rng.random(rows) < 1 / (1 + kl),
        "top5_agreement": rng.integers(0, 6, rows) / 5,
        "acceptance_rate": 1 / (1 + kl_R),
        "acceptance_rate_lower": 0.9 / (1 + kl_R),
        "cross_entropy": kl_R + 2,
        "confidence": confidence_R,
        "correct": rng.random(rows) < confidence_R,
    }
    return RowTable(record_R, {name: np.asarray(value, np.float64) for name, value in values.items()})


def _teacher(table: RowTable, rng: np.random.Generator) -> RowTable:
    rows = len(table.record_R)
    values = {
        "cross_entropy": np.full(rows, 2.0),
        "confidence": table.values["confidence"],
        "correct": table.values["correct"],
        "entropy": rng.uniform(0, 3, rows),
        "stored_entropy": np.full(rows, np.nan),
    }
    return RowTable(table.record_R, values)


def _metrics(steps: int, workers_wait: float) -> str:
    lines = []
    for model, names in (("student", ("forward_kl", "sequence_ce")), ("sft", ("sequence_ce",))):
        for step in range(1, steps + 1):
            line = {"stage": "train", "model": model, "step": step, "total_steps": steps, "loss": 5 / step}
            line |= dict.fromkeys(names, 6 / step) | {f"{name}_weighted": 3 / step for name in names}
            line |= {"learning_rate": 1e-3, "grad_norm": 10 / step, "rows": 50, "tokens": 100, "step_seconds": 2.0}
            lines.append(line | {"tokens_per_second": 50.0, "data_wait_seconds": workers_wait})
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Build a run; `changes` go into its configuration."""

    def build(name: str = "trial", student_kl: float = 0.5, seed: int = 0, **changes: Any) -> RunFolder:
        rng = np.random.default_rng(seed)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        make_cache(folder.cache, records=60)
        config = RunConfig.model_validate(
            {
                "output": str(folder.path),
                "prompts": {"sources": [{"path": "prompts.jsonl"}], "held_out": 0.5},
                "teacher": {"model": "a <teacher>", "replicas": 2},
                "student": {"from_teacher": {"layers": 2}},
                "objectives": [{"type": "forward_kl"}, {"type": "sequence_ce", "weight": 0.1}],
                "train": {"workers": 2},
                **changes,
            }
        )
        reader = CacheReader(folder.cache)
        _, records = reader.split(0.5)
        tables = {
            model: _table(reader, records, kl, rng)
            for model, kl in (("untrained", 8), ("sft", 2), ("student", student_kl))
        }
        teacher = _teacher(tables["sft"], rng)
        summary = summarise(
            tables,
            teacher,
            ["a.jsonl"] * len(records),
            reader.spec,
            True,
            Bootstrap(len(records), 200),
            (np.full(len(records), 50.0), np.full(len(records), 50.0)),
            "sft",
        )
        first = tables["sft"].record_R == 0
        tokens = ["<script>alert(1)</script>", " is", " text"] + [" x"] * (int(first.sum()) - 3)
        values = {model: np.round(tables[model].values["kl"][first], 4).tolist() for model in tables}
        sample = {"key": "00", "prompt": "<b>Why?</b>", "tokens": tokens, "finish_reason": "stop"}
        evaluation = {
            "held_out_records": len(records),
            "held_out_rows": len(teacher.record_R),
            "held_out_fingerprint": "f00d",
            "shape": {
                "student": {"model_type": "llama", "num_hidden_layers": 2},
                "teacher": {"model_type": "llama", "num_hidden_layers": 5},
                "layers_from": [0, 4],
            },
            **summary,
            "samples": [{**sample, "kl": values, "cross_entropy": values}],
        }
        folder.evaluation.write_text(json.dumps(evaluation))
        folder.config.write_text(config.model_dump_json())
        folder.provenance.write_text(json.dumps(provenance() | {"command": f"llmdistill run {name}.yaml"}))
        folder.metrics.write_text(_metrics(40, 0.1))
        folder.timings.write_text(json.dumps({"stage": "generate", "seconds": 1800.0}) + "\n")
        rejected = [
            {"source": "p:3", "reason": "the same prompt as p:1"},
            {"source": "p:9", "reason": "the same prompt as p:2"},
            {"source": "p:4", "reason": "not JSON: line <4>"},
        ]
        folder.rejected.write_text("".join(json.dumps(row) + "\n" for row in rejected))
        return folder

    return build
