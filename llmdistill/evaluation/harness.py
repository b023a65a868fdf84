"""Tasks of the lm-eval harness, run through its own API on a model folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmdistill.errors import ConfigError


def require_harness() -> None:
    """Fail before anything is computed where lm-eval is missing.

    Raises:
        ConfigError: it is not installed.

    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"needs the lm-eval harness, and {error.name or error} is not installed",
            where="evaluate.lm_eval",
            fix="pip install 'llmdistill[lm-eval]', or leave evaluate.lm_eval out",
        ) from None


def run_tasks(folder: Path, tasks: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Results of a model folder, as the harness names them.

    Args:
        folder: a Hugging Face model folder.
        tasks: names of tasks, or YAML files that define one.
        limit: documents of each task; None takes all.

    Returns:
        task → `metric,filter` → value or standard error.

    Raises:
        ConfigError: lm-eval is not installed, or does not know a task.

    """
    require_harness()
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = {task: _name_of(task) for task in tasks if task.endswith((".yaml", ".yml"))}
    names = [files.get(task, task) for task in tasks]
    folders = sorted({str(Path(file).resolve().parent) for file in files})
    # The index of the thousands of tasks that come with it takes ten seconds.
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise ConfigError(f"lm-eval knows no task {', '.join(unknown)}", where="evaluate.lm_eval")
    model = HFLM(pretrained=str(folder), dtype="auto", device="cuda" if torch.cuda.is_available() else "cpu")
    answer: Any = simple_evaluate(
        model, tasks=names, limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=1000
    )
    return {
        task: {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        for task, figures in answer["results"].items()
    }


def _name_of(file: str) -> str:
    import yaml

    try:
        described = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return str(described["task"])
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"is no task of lm-eval: {type(error).__name__}: {error}", where=f"evaluate.lm_eval: {file}"
        ) from None
