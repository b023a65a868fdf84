"""A student made of a teacher's own layers, saved as a plain Hugging Face folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmdistill.errors import ConfigError

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


def uniform_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Indices of the kept layers at equal distances, first and last included; of one layer, the last.

    Raises:
        ConfigError: the teacher has fewer layers.

    """
    if student_layers > teacher_layers:
        raise ConfigError(
            f"the teacher has {teacher_layers} layers, {student_layers} are asked for",
            where="student.from_teacher.layers",
            fix=f"use at most {teacher_layers}",
        )
    if student_layers == 1:
        return [teacher_layers - 1]
    step = (teacher_layers - 1) / (student_layers - 1)
    return [round(index * step) for index in range(student_layers)]


def keep_layers(teacher: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A deep copy of a model with only the decoder layers `kept`, in that order; the teacher is untouched.

    Raises:
        ConfigError: the model's decoder layers cannot be found.

    """
    layers = getattr(teacher.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"the decoder layers of {type(teacher).__name__} are not known",
            where="student.from_teacher",
            fix="give student.model instead",
        )
    student: Any = copy.deepcopy(teacher)
    selected: Any = nn.ModuleList([student.base_model.layers[index] for index in kept])
    for index, layer in enumerate(selected):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # the position in the KV cache
    student.base_model.layers = selected
    config = student.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    if getattr(config, "max_window_layers", None):
        config.max_window_layers = min(config.max_window_layers, len(kept))
    config.num_hidden_layers = len(kept)
    result: PreTrainedModel = student
    return result


def create_from_teacher(teacher_folder: Path, layers: int, folder: Path) -> list[int]:
    """Write the untrained student: weights in the teacher's precision, its tokenizer files byte for byte.

    Returns:
        the teacher's layers that were kept.

    """
    teacher = AutoModelForCausalLM.from_pretrained(str(teacher_folder), dtype="auto")
    kept = uniform_layers(teacher.config.num_hidden_layers, layers)
    student = keep_layers(teacher, kept)
    student.config._name_or_path = ""
    student.save_pretrained(str(folder))
    copy_tokenizer(teacher_folder, folder)
    return kept


def create_from_model(model: str, teacher_folder: Path, folder: Path) -> None:
    """Write the untrained student from an existing model, with the teacher's tokenizer files.

    Raises:
        ConfigError: it cannot be loaded, or its vocabulary is narrower than the teacher's tokenizer.

    """
    try:
        student = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be loaded: {error}", where=f"student.model: {model}") from None
    vocabulary_size = len(AutoTokenizer.from_pretrained(str(teacher_folder)))
    if student.config.vocab_size < vocabulary_size:
        raise ConfigError(
            f"its vocabulary of {student.config.vocab_size} is narrower than the teacher's {vocabulary_size} tokens",
            where=f"student.model: {model}",
            fix="use a student of the teacher's family, or student.from_teacher",
        )
    student.save_pretrained(str(folder))
    copy_tokenizer(teacher_folder, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, its chat template included."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def load_student(folder: Path, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """A model folder as a module, in `dtype`, with attention that honours packed sequences."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention)
