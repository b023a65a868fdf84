"""Configurations of small runs to launch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def write_run(folder: Path, teacher: Path | str, cluster: dict[str, Any], **sections: Any) -> Path:
    """A run of 60 prompts with the fake engine and a few steps of training, in `folder`."""
    rows = [{"messages": [{"role": "user", "content": f"Tell me about {n}."}]} for n in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "output": str(folder / "run"),
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "held_out": 0.2},
        "teacher": {
            "model": str(teacher),
            "engine": "fake",
            "max_model_len": 128,
            "requests_per_shard": 4,
            "units_in_flight": 1,
            "sampling": {"max_new_tokens": 16, "temperature": 1.0},
        },
        "capture": {"top_k": 16},
        "student": {"from_teacher": {"layers": 2}},
        "objectives": [{"type": "forward_kl"}],
        "train": {"sequence_length": 128, "tokens_per_step": 512, "workers": 2, "save_steps": 2},
        "evaluate": {"baseline": False, "speed": None},
        "cluster": cluster,
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
