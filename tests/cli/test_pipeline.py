from __future__ import annotations

import json
from pathlib import Path

from llmdistill.cli.pipeline import PIPELINE, fingerprint
from llmdistill.config.run import RunConfig


def config(tmp_path: Path, **evaluate: object) -> RunConfig:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n")
    return RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "prompts": {"sources": [{"path": str(path)}]},
            "teacher": {"model": "m"},
            "student": {"from_teacher": {"layers": 2}},
            "objectives": [{"type": "forward_kl"}],
            "evaluate": evaluate,
        }
    )


def test_another_evaluation_does_not_train_again(tmp_path: Path) -> None:
    before, after = config(tmp_path), config(tmp_path, bootstrap=50, lm_eval=["arc_easy"])
    changed = [stage.name for stage in PIPELINE if fingerprint(before, stage, "") != fingerprint(after, stage, "")]
    assert changed == ["evaluate"]
    without = config(tmp_path, baseline=False)
    changed = [stage.name for stage in PIPELINE if fingerprint(before, stage, "") != fingerprint(without, stage, "")]
    assert changed == ["train", "export", "evaluate"]
