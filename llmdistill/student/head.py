"""What stands behind the weight of a model's head."""

from __future__ import annotations

from transformers import PreTrainedModel


def logit_softcap(model: PreTrainedModel) -> float | None:
    """C of c·tanh(logits / c), which Gemma 2 puts behind the head; None: plain logits."""
    value = getattr(model.config, "final_logit_softcapping", None)
    return None if value is None else float(value)
