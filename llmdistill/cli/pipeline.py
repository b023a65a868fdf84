"""Which stages run: finished ones are skipped, and a stage is finished when it ended on the same inputs.

`stages.json` keeps for each finished stage a fingerprint of the configuration that it read and of the stage before it.
A training that was made under other settings is never overwritten: the trainer refuses and shows the difference.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.cache.storage import commit_bytes
from llmdistill.cli import stages
from llmdistill.config.objectives import earlier_student
from llmdistill.config.run import RunConfig
from llmdistill.errors import ConfigError
from llmdistill.observe.provenance import provenance
from llmdistill.observe.run_folder import RunFolder
from llmdistill.trainer import torchrun


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    work: Callable[[stages.Run], None]
    sections: tuple[str, ...]
    """Sections of the configuration that it depends on, or parts of them, as `section.key`."""
    outputs: tuple[str, ...]
    """Properties of `RunFolder` that must exist for it to count as finished."""


PIPELINE = (
    Stage("generate", stages.generate, ("prompts", "teacher", "teachers", "capture"), ("cache",)),
    Stage(
        "train",
        stages.train,
        ("prompts", "student", "objectives", "train", "rounds", "evaluate.baseline"),
        ("checkpoints", "untrained"),
    ),
    Stage("export", stages.export, ("evaluate.baseline", "export"), ("student",)),
    Stage("evaluate", stages.evaluate, ("prompts", "evaluate"), ("evaluation",)),
    Stage("report", stages.report, (), ("report",)),
)


def run_stages(config: RunConfig, until: str | None) -> None:
    """Run the pipeline.

    Args:
        config: the run.
        until: run this stage alone, or all of them for None. A single stage is run even if it is finished; it keeps
            what it finds (committed records, checkpoints of the same training).

    """
    quiet_libraries()
    if torchrun.is_worker() and until != "train":
        raise ConfigError(
            "a launcher like torchrun runs the training alone",
            fix="use `llmdistill train` under it, and the other commands without it",
        )
    _require_parts(config)
    run = stages.Run(config, RunFolder(Path(config.output).resolve()))
    folder = run.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    commit_bytes(folder.config, (config.model_dump_json(indent=1) + "\n").encode())
    teachers = {name: teacher.model for name, teacher in config.asked_teachers.items()}
    commit_bytes(folder.provenance, (json.dumps(provenance() | {"teachers": teachers}, indent=1) + "\n").encode())
    finished = _finished(folder)
    before = ""
    for stage in PIPELINE:
        inputs = fingerprint(config, stage, before)
        before = inputs
        complete = finished.get(stage.name) == inputs and all(getattr(folder, name).exists() for name in stage.outputs)
        if until is None and complete:
            stages.say(f"{stage.name}: finished before")
        elif until in (None, stage.name):
            started = time.monotonic()
            try:
                stage.work(run)
            finally:
                _note_seconds(folder, stage.name, time.monotonic() - started)
            # Read again: another stage may have ended beside this one (`train.wait_for_cache`).
            finished = {**_finished(folder), stage.name: inputs}
            commit_bytes(folder.stages, (json.dumps(finished, indent=1) + "\n").encode())


def generate_first(config: RunConfig) -> None:
    """Fill the cache where it is not finished, and leave everything else of the run alone."""
    quiet_libraries()
    stage, folder = PIPELINE[0], RunFolder(Path(config.output).resolve())
    if _finished(folder).get(stage.name) == fingerprint(config, stage, "") and folder.cache.exists():
        stages.say(f"{stage.name}: finished before")
    else:
        run_stages(config, until=stage.name)


def _finished(folder: RunFolder) -> dict[str, str]:
    found: dict[str, str] = json.loads(folder.stages.read_text()) if folder.stages.is_file() else {}
    return found


def _require_parts(config: RunConfig) -> None:
    """What only the training needs, looked for before the teacher is paid.

    Raises:
        ConfigError: an earlier student or a package is not there.

    """
    from llmdistill.trainer.trackers import require_services

    earlier = earlier_student(config.objectives)
    if earlier not in (None, "ema") and not Path(str(earlier), "config.json").is_file():
        raise ConfigError(
            f"'{earlier}' is no model folder",
            where="objectives: self_distillation.model",
            fix="name the folder of an exported student, as RUN/student, or ema",
        )
    require_services(config.train)


def _note_seconds(folder: RunFolder, stage: str, seconds: float) -> None:
    with folder.timings.open("a") as stream:
        stream.write(json.dumps({"stage": stage, "seconds": round(seconds, 3)}) + "\n")


def fingerprint(config: RunConfig, stage: Stage, before: str) -> str:
    """Hash of what a stage reads: its sections, the prompt files, and the fingerprint of the stage before it."""
    digest = hashlib.blake2b(before.encode(), digest_size=16)
    values: dict[str, Any] = config.model_dump(mode="json")
    read = {name: functools.reduce(operator.getitem, name.split("."), values) for name in stage.sections}
    digest.update(json.dumps(read, sort_keys=True).encode())
    if stage.name == "generate":
        from llmdistill.prompts.files import fingerprint as files_fingerprint

        evaluation = config.prompts.decontamination.sources if config.prompts.decontamination else ()
        for source in (*config.prompts.sources, *evaluation):
            digest.update(files_fingerprint(source).encode())
    return digest.hexdigest()


def quiet_libraries() -> None:
    """Progress bars and banners of libraries would tear our own."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to guess
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
