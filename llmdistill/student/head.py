"""What stands before and behind the weight of a model's head."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError


def logit_softcap(model: PreTrainedModel) -> float | None:
    """C of c·tanh(logits / c), which Gemma 2 puts behind the head; None: plain logits."""
    value = getattr(model.config, "final_logit_softcapping", None)
    return None if value is None else float(value)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm behind the last block, for predictions of earlier ones.

    Raises:
        ConfigError: it cannot be found.

    """
    for name in ("norm", "ln_f", "final_layer_norm"):
        norm = getattr(model.base_model, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise ConfigError(
        f"the final norm of {type(model).__name__} is not known",
        where="objectives: deep_supervision",
        fix="leave the objective out for this family",
    )
