"""A student with random weights, from a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.errors import ConfigError
from llmdistill.student.folder import save_student
from llmdistill.student.vocabulary import vocabulary_size

_WHERE = "student.config"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def create_from_config(
    given: dict[str, Any] | str, teacher_folder: Path, folder: Path, seed: int, dtype: str = "auto"
) -> str:
    """Write a student with random weights.

    The width of the vocabulary and the ids of special tokens are the teacher's where they are not given.

    Args:
        given: keys of a config, or a folder with a config.json.
        teacher_folder: the teacher.
        folder: written.
        seed: of the weights; the same gives the same, whatever was drawn before.
        dtype: precision of the files; `auto`: bfloat16.

    Returns:
        a description.

    Raises:
        ConfigError: the config is not one, or its sizes do not fit together or the teacher's tokenizer.

    """
    config = student_config(given, teacher_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    note = save_student(student, teacher_folder, folder, "bfloat16" if dtype == "auto" else dtype)
    return f"the student is a {config.model_type} with random weights; {note}"


def student_config(given: dict[str, Any] | str, teacher_folder: Path) -> Any:
    """The whole config; raises as `create_from_config` does."""
    teacher = AutoConfig.from_pretrained(str(teacher_folder))
    try:
        if isinstance(given, str):
            config: Any = AutoConfig.from_pretrained(given)
            stated = config.to_dict()
        else:
            taken = {key: getattr(teacher, key, None) for key in ("vocab_size", *_TOKEN_IDS)}
            stated = {**taken, **given}
            config = AutoConfig.for_model(**stated)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"is no config of a model: {str(error).strip().splitlines()[0]}", where=_WHERE) from None
    tokens = vocabulary_size(teacher_folder)
    if config.vocab_size < tokens:
        raise ConfigError(
            f"vocab_size {config.vocab_size} is smaller than the {tokens} tokens of the teacher's tokenizer",
            where=_WHERE,
            fix=f"use {teacher.vocab_size}, or leave it out",
        )
    _require_heads(config, stated)
    return config


def _require_heads(config: Any, stated: dict[str, Any]) -> None:
    """Sizes that transformers takes without a word and that then fail, or mean something else, elsewhere."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    if heads % kv:
        raise ConfigError(
            f"{heads} attention heads cannot share {kv} key-value heads evenly",
            where=f"{_WHERE}.num_key_value_heads",
            fix=f"use a divisor of {heads}",
        )
    if hidden % heads:
        raise ConfigError(
            f"hidden_size {hidden} is not a multiple of {heads} attention heads",
            where=f"{_WHERE}.hidden_size",
            fix=f"use {-(-hidden // heads) * heads}",
        )
    default = getattr(config, "head_dim", None)
    if "qk_rope_head_dim" not in stated and "head_dim" not in stated and default not in (None, hidden // heads):
        raise ConfigError(
            f"head_dim is not given, and {config.model_type} would take {default},"
            f" not hidden_size / heads = {hidden // heads}",
            where=f"{_WHERE}.head_dim",
            fix="write the one that is meant",
        )
