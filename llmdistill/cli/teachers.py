"""The teachers that a run asks, each with its folder and its capture spec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdistill.config.prompts import MAIN_TEACHER
from llmdistill.config.run import RunConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.types import CaptureSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AskedTeacher:
    """A teacher that answers prompts."""

    name: str
    config: TeacherConfig
    folder: Path
    """Its configuration and tokenizer; its weights lie there, too, where no server has them."""
    spec: CaptureSpec


def asked_teachers(config: RunConfig, main_folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, AskedTeacher]:
    """The teachers by name, in the order in which they are asked.

    Args:
        config: the run.
        main_folder: of the section `teacher`, see `AskedTeacher.folder`.
        tokenizer: of the same.

    Raises:
        ConfigError: there is no such model, or its tokenizer gives other ids.
        DataError: its folder is damaged.

    """
    asked = {}
    for name, teacher in config.asked_teachers.items():
        folder = main_folder
        if name != MAIN_TEACHER:
            folder = teacher_folder(teacher, f"teachers.{name}")
            _require_same_ids(tokenizer, folder, name)
        asked[name] = AskedTeacher(name, teacher, folder, capture_spec(config, teacher, folder, tokenizer))
    return asked


def teacher_folder(teacher: TeacherConfig, key: str) -> Path:
    """The folder of a teacher; of one behind a server without its weights. `key` is its section, for messages."""
    from llmdistill.teacher.source import locate_model, resolve_teacher

    find = resolve_teacher if teacher.server is None else locate_model
    return find(teacher.model, f"{key}.model")


def capture_spec(
    config: RunConfig, teacher: TeacherConfig, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> CaptureSpec:
    """What is captured of a teacher; `tokenizer` is the one that makes the prompts."""
    from llmdistill.prompts.keys import model_fingerprint, served_fingerprint, tokenizer_fingerprint

    sampling = teacher.sampling.model_dump(exclude={"samples", "seed"})
    return CaptureSpec(
        mode=config.prompts.mode,
        vocabulary_size=len(tokenizer),
        teacher=served_fingerprint(folder, teacher.served_name) if teacher.server else model_fingerprint(folder),
        tokenizer=tokenizer_fingerprint(tokenizer),
        engine=teacher.engine,
        dtype=teacher.dtype,
        sampling=sampling if config.prompts.mode == "generate" else {},
        **config.capture.spec_fields(),
    )


def _require_same_ids(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    from llmdistill.prompts.keys import id_difference
    from llmdistill.prompts.render import load_tokenizer

    difference = id_difference(tokenizer.get_vocab(), load_tokenizer(folder).get_vocab())
    if difference:
        raise ConfigError(
            f"its tokenizer gives other ids than that of {MAIN_TEACHER}: {difference}",
            where=f"teachers.{name}.model",
            fix="choose teachers of one family, or distil from each in a run of its own",
        )
