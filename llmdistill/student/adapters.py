"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft: they are trained, and the student stays as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.config.student import LoRAConfig
from llmdistill.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraModel

_WHERE = "student.lora.target_modules"


def add_adapters(model: PreTrainedModel, wanted: LoRAConfig, seed: int) -> LoraModel:
    """Put adapters into a model and freeze everything else.

    The model keeps its class, and its weights get `base_layer` into their names where an adapter stands beside them.
    First weights follow from the seed alone, so all ranks have the same; torch's random numbers stay where they are.

    Args:
        model: on the CPU or without memory; changed in place.
        wanted: the `student.lora` section.
        seed: of the adapters' first weights.

    Returns:
        peft's view of the same model, which can merge the adapters into its weights.

    Raises:
        ConfigError: no module has such a name, or the head or the embeddings would get an adapter.

    """
    import peft

    names = wanted.target_modules
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=wanted.r,
        lora_alpha=wanted.lora_alpha,
        lora_dropout=wanted.lora_dropout,
        target_modules=names if isinstance(names, str) else list(names),
    )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = peft.LoraModel(model, config, "default")
        except ValueError as error:
            raise ConfigError(str(error), where=_WHERE, fix="name modules of the student, or use all-linear") from None
    if model.get_output_embeddings() is not head or model.get_input_embeddings() is not embeddings:
        raise ConfigError(
            "the fused head reads the weights of head and embeddings, which cannot have adapters",
            where=_WHERE,
            fix="leave them out, or use all-linear",
        )
    return adapted


def merge_adapters(adapted: LoraModel) -> PreTrainedModel:
    """The model itself, with the adapters added to its weights and gone from it."""
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    return merged  # type: ignore[no-any-return]


def trained_names(model: nn.Module) -> set[str]:
    """Names of the weights that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
