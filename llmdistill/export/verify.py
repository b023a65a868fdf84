"""Loading an exported folder as its users will, and comparing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmdistill.errors import DataError

_FOREIGN = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|base_model|student|projectors?)\.")
"""Parts of names that wrappers leave behind."""

_PROMPT_TOKENS, _NEW_TOKENS = 16, 16


def verify_export(folder: Path, trained: PreTrainedModel) -> None:
    """Compare a folder with the model that it was written from.

    Args:
        folder: an exported folder.
        trained: the model in memory.

    Raises:
        DataError: naming what is wrong.

    """
    verify_files(folder)
    answer: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", output_loading_info=True)
    loaded, report = answer
    faults = {key: sorted(map(str, value)) for key, value in report.items() if key.endswith("_keys") and value}
    if faults:
        raise DataError(f"the exported student does not load cleanly: {json.dumps(faults)}", where=str(folder))
    token_ids = torch.arange(_PROMPT_TOKENS).unsqueeze(0) % trained.config.vocab_size
    with torch.inference_mode():
        if not torch.equal(loaded.eval()(token_ids).logits, trained.eval()(token_ids).logits):
            raise DataError("the exported student gives other logits than the trained one", where=str(folder))
    _verify_generation(loaded, token_ids, folder)


def verify_files(folder: Path) -> None:
    """Check names and shapes of the weights and what the config says of them, without loading the model.

    Raises:
        DataError: a weight is empty, a name is a wrapper's, the head contradicts the config, or the class is unknown.

    """
    shapes = weight_shapes(folder)
    if empty := sorted(name for name, shape in shapes.items() if 0 in shape):
        raise DataError(
            f"weights without values: {', '.join(empty[:3])}",
            where=str(folder),
            fix="they were saved without being gathered from all ranks; export from a checkpoint",
        )
    if foreign := sorted(name for name in shapes if _FOREIGN.search(name)):
        raise DataError(f"names that no loader knows: {', '.join(foreign[:3])}", where=str(folder))
    config: Any = AutoConfig.from_pretrained(str(folder))
    has_head = any(re.search(r"(^|\.)(lm_head|embed_out)\.weight$", name) for name in shapes)
    if has_head == bool(config.tie_word_embeddings):
        stored = "is stored" if has_head else "is missing"
        raise DataError(
            f"the weight of the head {stored}, and tie_word_embeddings is {config.tie_word_embeddings}", str(folder)
        )
    stock = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if config.architectures != [stock] or getattr(config, "auto_map", None):
        raise DataError(f"architectures is {config.architectures}, transformers knows {stock}", where=str(folder))


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a folder, read from the headers of its safetensors files.

    Raises:
        DataError: a file is damaged, or the index names weights that are not there.

    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot be read: {error}", where=str(path)) from None
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"]) if index.is_file() else set(shapes)
    if not shapes or named != set(shapes):
        missing = ", ".join(sorted(named ^ set(shapes))[:3]) or "all"
        raise DataError(f"weights that are in the index or in the files alone: {missing}", where=str(folder))
    return shapes


def _verify_generation(model: Any, token_ids: torch.Tensor, folder: Path) -> None:
    """Tokens with and without the KV cache, in float32: a wrong position in the cache shows here."""
    model.float()
    written = [
        model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
            pad_token_id=0,
        ).tolist()
        for use_cache in (True, False)
    ]
    if written[0] != written[1]:
        raise DataError("the exported student writes other tokens with a KV cache than without", where=str(folder))
