"""What the trainer takes for granted of a student, checked on the student itself before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.student.packing import packed_hidden_states

_TOLERANCE = 1e-3


def drop_softcap(student: PreTrainedModel) -> bool:
    """Take a cap of the final logits off: the trainer's logits are the head times the hidden states.

    Returns:
        whether there was one.

    """
    config: Any = student.config
    had = getattr(config, "final_logit_softcapping", None) is not None
    if had:
        config.final_logit_softcapping = None
    return had


@torch.no_grad()
def require_trainable(student: PreTrainedModel) -> None:
    """Refuse a student whose exported logits would not be those that are trained.

    Raises:
        ConfigError: its logits are not the head times the hidden states, or packed records see each other.

    """
    was_training = student.training
    student.eval()
    tokens = torch.arange(3, 15, device=student.device)[None] % student.config.vocab_size
    alone: Any = student(tokens, use_cache=False)
    head: Any = student.get_output_embeddings()
    positions = torch.arange(12, device=student.device)[None]
    hidden = packed_hidden_states(student, tokens, positions)
    _require_close(
        (hidden @ head.weight.T).float(),
        alone.logits.float(),
        "its logits are not its output embeddings times its last hidden states",
        student,
    )
    pair = packed_hidden_states(student, torch.cat([tokens, tokens], dim=1), torch.cat([positions, positions], dim=1))
    _require_close(
        pair[:, 12:].float(), hidden.float(), "records that are packed into one sequence see each other", student
    )
    student.train(was_training)


def _require_close(found: torch.Tensor, expected: torch.Tensor, fault: str, student: PreTrainedModel) -> None:
    # bfloat16 rounds to 8 bits; a real difference is of the order of the values.
    tolerance = _TOLERANCE if student.dtype == torch.float32 else 0.1
    if (found - expected).abs().max() > tolerance * expected.abs().max().clamp(min=1e-6):
        raise ConfigError(f"{fault}, so it cannot be trained here", where=f"student: {student.config.model_type}")
