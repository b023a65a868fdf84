"""What a student's folder holds besides its weights: the tokenizer's files and the generation config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from llmdistill.student.trainable import require_trainable

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""Copied byte for byte from the teacher, where it has them."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, its chat template included; the folder ends up with these and no others."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def generation_config(teacher_folder: Path) -> GenerationConfig:
    """The teacher's, with every end token of its tokenizer, of its config and of its own list.

    Sampling settings without `do_sample`, which older models were published with and which newer versions refuse to
    write, are taken as they were meant: with it. A `max_length` is a limit of the teacher's example and is left out.
    """
    try:
        config: Any = GenerationConfig.from_pretrained(str(teacher_folder))
    except OSError:
        config = GenerationConfig()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(teacher_folder))
    model: Any = AutoConfig.from_pretrained(str(teacher_folder))
    ends = {*_listed(config.eos_token_id), *_listed(model.eos_token_id), *_listed(tokenizer.eos_token_id)}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    config.max_length = None
    if any(getattr(config, name, None) is not None for name in _SAMPLING) and not config.do_sample:
        config.do_sample = True
    result: GenerationConfig = config
    return result


def save_student(student: PreTrainedModel, teacher_folder: Path, folder: Path, dtype: str) -> str:
    """Check a student and write its folder, with the teacher's tokenizer and generation config.

    Args:
        student: the model.
        teacher_folder: gives the tokenizer.
        folder: written.
        dtype: precision of the files; `auto`: as it is.

    Returns:
        a line for a person: parameters and precision.

    Raises:
        ConfigError: it cannot be trained.

    """
    require_trainable(student)
    if dtype != "auto":
        student.to(getattr(torch, dtype))
        student.config.dtype = getattr(torch, dtype)
    student.config._name_or_path = ""
    student.generation_config = generation_config(teacher_folder)
    student.save_pretrained(str(folder))
    copy_tokenizer(teacher_folder, folder)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return f"{parameters:,} parameters in {str(student.dtype).removeprefix('torch.')}"


def _listed(ids: Any) -> list[int]:
    return list(ids) if isinstance(ids, (list, tuple)) else [] if ids is None else [int(ids)]
