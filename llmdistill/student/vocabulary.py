"""A student's vocabulary against the teacher's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from llmdistill.config.student import OTHER_TOKENIZER
from llmdistill.errors import ConfigError
from llmdistill.student.folder import TOKENIZER_FILES


def vocabulary_size(folder: Path) -> int:
    """Number of tokens of a folder's tokenizer."""
    return len(AutoTokenizer.from_pretrained(str(folder)))


def grow_vocabulary(model: PreTrainedModel, tokens: int, seed: int) -> int:
    """Make room for `tokens` ids; a model that has it already, padding included, stays as it is.

    New rows are drawn around the mean of the old ones, as transformers does, from `seed`.

    Returns:
        rows that were added.

    """
    embeddings: Any = model.get_input_embeddings()
    before: int = embeddings.weight.shape[0]
    if before >= tokens:
        return 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(tokens)
    return tokens - before


def require_same_tokenizer(model: str, teacher_folder: Path, where: str) -> None:
    """Refuse a student whose own tokenizer gives ordinary tokens other ids; one without a tokenizer passes.

    Added tokens (special ones, roles, tools) may be named differently: their embeddings are trained.

    Raises:
        ConfigError: the tokenizers differ.

    """
    try:
        mine: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError):
        return
    theirs: Any = AutoTokenizer.from_pretrained(str(teacher_folder))
    own, other = mine.get_vocab(), theirs.get_vocab()
    added = {*mine.get_added_vocab(), *theirs.get_added_vocab()}
    ordinary = [token for token in own.keys() | other.keys() if token not in added]
    differing = [token for token in ordinary if own.get(token) != other.get(token)]
    if differing:
        raise ConfigError(
            f"its tokenizer is not the teacher's: {len(differing):,} of {len(ordinary):,} tokens have other ids,"
            f" for example {min(differing)!r}",
            where=where,
            fix=OTHER_TOKENIZER,
        )


def tokenizer_files(model: str) -> Path:
    """Folder with the configuration and the tokenizer of a model; of a hub model these files are fetched.

    Raises:
        ConfigError: it has no tokenizer.json.

    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model, allow_patterns=[*TOKENIZER_FILES, "*config.json"]))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be loaded: {error}", where=f"student.model: {model}") from None
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            "it has no tokenizer.json, and student.tokenizer is own",
            where=f"student.model: {model}",
            fix="save its tokenizer there as a fast one, or use student.tokenizer: teacher",
        )
    return folder
