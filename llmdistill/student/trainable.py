"""What the trainer takes for granted of a model, checked on a few tokens before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.objectives.targets import softcapped
from llmdistill.student.head import logit_softcap
from llmdistill.student.packing import forward_packed

_TOLERANCE = 1e-4


@torch.no_grad()
def require_trainable(model: PreTrainedModel, where: str = "student") -> None:
    """Refuse a model whose logits are not what the fused head computes, or that cannot keep packed records apart.

    Args:
        model: student or live teacher, whole, on any device, in any precision.
        where: its name, for the message.

    Raises:
        ConfigError: the head has a bias or a scale, or packed records see each other.

    """
    was_training = model.training
    model.eval()
    tokens = torch.arange(3, 15, device=model.device)[None] % model.config.vocab_size
    positions = torch.arange(12, device=model.device)[None]
    hidden = forward_packed(model, tokens, positions).final_BTD
    head: Any = model.get_output_embeddings()
    found: Any = model(tokens, use_cache=False).logits
    if not _close(softcapped(hidden @ head.weight.T, logit_softcap(model)), found):
        raise ConfigError(
            f"the logits of {type(model).__name__} are not its output embeddings times its last hidden states (a bias,"
            " or a scale), so the fused head cannot train it",
            where=where,
        )
    # The same record behind two different ones: other tokens and the same shapes, so that nothing but attention across
    # the boundary can make a difference. Rounding may differ by much between shapes, in 16 bits and many layers.
    others = tokens, (tokens + 12) % model.config.vocab_size
    behind = [
        forward_packed(model, torch.cat([other, tokens], dim=1), torch.cat([positions, positions], dim=1)).final_BTD
        for other in others
    ]
    if not _close(behind[0][:, 12:], behind[1][:, 12:]):
        raise ConfigError(
            f"records that are packed into one sequence see each other in {type(model).__name__}", where=where
        )
    model.train(was_training)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    # 16-bit formats round to 8 bits; a real difference is of the order of the values.
    tolerance = _TOLERANCE if found.dtype == torch.float32 else 0.1
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * expected.float().abs().max().clamp(min=1e-6))
