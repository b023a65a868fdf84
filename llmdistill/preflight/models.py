"""Gathering facts about models from their small files: config.json, tokenizer, headers of weight files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdistill.config.student import StudentConfig
from llmdistill.errors import DataError
from llmdistill.preflight.facts import ModelFacts, TokenizerFacts
from llmdistill.preflight.weight_files import weight_files
from llmdistill.teacher.source import locate_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def teacher_facts(model: str, key: str = "teacher") -> tuple[ModelFacts, PreTrainedTokenizerBase | None]:
    """A teacher, and its tokenizer for rendering prompts; `key` is its section in the configuration.

    Raises:
        ConfigError: there is no such model.
        DataError: its config.json or its tokenizer cannot be read.

    """
    return _model_facts(model, f"{key}.model")


def student_facts(student: StudentConfig, teacher: ModelFacts) -> ModelFacts:
    """The student: a model of its own, or what will be cut out of the teacher.

    Raises:
        ConfigError: there is no such model, or the teacher cannot be cut so.
        DataError: its config.json or its tokenizer cannot be read.

    """
    if student.model is not None:
        return _model_facts(student.model, "student.model")[0]
    if student.from_teacher is not None:
        from llmdistill.student.plan import planned_config

        config, name = planned_config(dict(teacher.config), student.from_teacher), f"cut out of {teacher.name}"
    else:
        given = student.config
        config = read_config(Path(given)) if isinstance(given, str) else dict(given or {})
        name = "student.config"
    return ModelFacts(name, _with_sizes(config), teacher.tokenizer, teacher.generation_ends)


def _with_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every size that its architecture has by default or under another name."""
    from transformers import AutoConfig

    values = dict(config)
    parsed: Any = AutoConfig.for_model(values.pop("model_type"), **values)
    return {**parsed.to_dict(), **{name: getattr(parsed, name) for name in _SIZES}}


def _model_facts(model: str, key: str) -> tuple[ModelFacts, PreTrainedTokenizerBase | None]:
    place = locate_model(model, key)
    if place.is_file():
        return _gguf_facts(model, place)
    config = read_config(place)
    tokenizer = _load_tokenizer(place)
    facts = ModelFacts(
        model,
        config.get("text_config", config),
        _tokenizer_facts(tokenizer),
        _generation_ends(place, config),
        weight_files(place),
        local=Path(model).expanduser().is_dir(),
    )
    return facts, tokenizer


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        DataError: it is missing, damaged, or not that of a causal language model.

    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            "is missing, so this is no model folder", where=str(path), fix="name a folder made by save_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), fix="fetch the file again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise DataError("names no model_type", where=str(path), fix="fetch the file again")
    text = config.get("text_config", config)
    missing = [name for name in _SIZES if not isinstance(text.get(name), int)]
    if missing:
        raise DataError(f"lacks {', '.join(missing)}", where=str(path), fix="name a causal language model")
    return config


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    from llmdistill.prompts.render import load_tokenizer

    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    return load_tokenizer(folder)


def _gguf_facts(model: str, file: Path) -> tuple[ModelFacts, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise DataError(
            f"transformers cannot read the GGUF file: {error}", where=str(file), fix="fetch the file again"
        ) from None
    facts = config.to_dict()
    return ModelFacts(
        model, facts, _tokenizer_facts(tokenizer), _as_ids(facts.get("eos_token_id")), local=False
    ), tokenizer


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase | None) -> TokenizerFacts | None:
    if tokenizer is None:
        return None
    template = tokenizer.chat_template
    return TokenizerFacts(
        tokenizer.get_vocab(),
        len(tokenizer),
        tokenizer.eos_token_id,
        json.dumps(template, sort_keys=True) if isinstance(template, (dict, list)) else template,
    )


def _generation_ends(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(file), fix="fetch the file again") from None
    return _as_ids(said.get("eos_token_id", config.get("eos_token_id")))


def _as_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
