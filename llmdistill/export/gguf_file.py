"""The student as one GGUF file, for llama.cpp and what builds on it; checked by loading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llmdistill.errors import ConfigError, DataError

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` → GGUF's name."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: "llama-bpe",
    "digits": "smollm",
    "": "gpt-2",
}
"""How a byte-level tokenizer splits text first → llama.cpp's name of it."""

_TOLERANCE = 1e-4

_TOKENS = gguf.TokenType


def write_gguf(folder: Path, asked: Literal["float16", "float32"] | bool) -> Path:
    """Write `folder`/model-f16.gguf (or -f32). Vectors are always float32, as llama.cpp needs them.

    Args:
        folder: an exported student.
        asked: precision of the matrices; True: float32 for a float32 student, else float16.

    Raises:
        ConfigError: the architecture or the tokenizer is not one that is known to survive.
        DataError: the file, loaded back, gives other logits.

    """
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    kind = asked if isinstance(asked, str) else "float16"
    if asked is True and AutoConfig.from_pretrained(str(folder)).dtype == torch.float32:
        kind = "float32"
    splits = require_convertible(model.config, folder)
    path = folder / f"model-{'f16' if kind == 'float16' else 'f32'}.gguf"
    writer = gguf.GGUFWriter(str(path), _ARCHITECTURES[model.config.model_type])
    _write_config(writer, model.config, kind)
    _write_tokenizer(writer, folder, splits, model.config.vocab_size)
    _write_weights(writer, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _verify(path, model, kind)
    return path


def require_convertible(config: Any, folder: Path) -> str:
    """llama.cpp's name of how the tokenizer splits text.

    Raises:
        ConfigError: something in the config or the tokenizer has no place in the file.

    """
    where = "export.gguf"
    if config.model_type not in _ARCHITECTURES:
        raise ConfigError(
            f"'{config.model_type}' is not one of {', '.join(_ARCHITECTURES)}", where=where, fix="set export.gguf=false"
        )
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"rotary scaling '{rope['rope_type']}' cannot be checked by loading it back", where=where)
    if getattr(config, "sliding_window", None):
        raise ConfigError(f"a sliding window of {config.sliding_window} has no place in the file", where=where)
    if config.model_type == "qwen3" and config.head_dim != 128:
        raise ConfigError(f"transformers reads Qwen3 files with heads of 128 only, not {config.head_dim}", where=where)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    name = (
        _SPLITS.get(_first_split(tokenizer.get("pre_tokenizer")) or "") if tokenizer["model"]["type"] == "BPE" else None
    )
    if name is None or _first_split(tokenizer.get("pre_tokenizer")) is None:
        raise ConfigError("how its tokenizer splits text is not known in the file's terms", where=where)
    return name


def _first_split(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The key of `_SPLITS`, or None where it is no byte-level tokenizer."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "" if steps[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:
        return "digits"
    if kinds == ["Split", "ByteLevel"]:
        return str(steps[0]["pattern"].get("Regex"))
    return None


def _write_config(writer: Any, config: Any, kind: str) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("student")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "float16" else gguf.LlamaFileType.ALL_F32)


def _write_tokenizer(writer: Any, folder: Path, splits: str, vocabulary_size: int) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(vocabulary_size):
        tokens.append(texts.get(number, f"[PAD{number}]"))
        if number in added:
            types.append(_TOKENS.CONTROL if added[number].special else _TOKENS.USER_DEFINED)
        else:
            types.append(_TOKENS.NORMAL if number in texts else _TOKENS.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary_size)
    special.chat_template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    special.add_to_gguf(writer, quiet=True)


def _write_weights(writer: Any, model: Any, kind: str) -> None:
    config = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == _ARCHITECTURES[config.model_type])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        values = parameter.detach()
        if _ARCHITECTURES[config.model_type] == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values = _interleaved(values, heads)
        array = values.numpy()
        if kind == "float16" and values.dim() > 1:
            array = array.astype(np.float16)
        writer.add_tensor(f"{names.get_name(module)}.{leaf}", array)


def _interleaved(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs lie half a head apart in transformers and side by side in LLaMA's GGUF files."""
    pairs = values.view(heads, 2, -1, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape).contiguous()


@torch.inference_mode()
def _verify(path: Path, model: Any, kind: str) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    if kind == "float16":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half())
    token_ids = torch.arange(16).unsqueeze(0) % model.config.vocab_size
    found, expected = loaded(token_ids).logits, model.eval()(token_ids).logits
    if found.shape != expected.shape or (found - expected).abs().max() > _TOLERANCE * expected.abs().max():
        raise DataError("the GGUF file gives other logits than the student", where=str(path))
