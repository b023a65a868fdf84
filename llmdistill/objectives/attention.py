"""Attention maps of mapped layers: a value per query row, reduced elsewhere.

A map's row is a distribution over the keys that the query may see. Keys it may not see (later tokens, padding, other
records of the same packed sequence) have probability 0 on both sides and add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmdistill.errors import ConfigError

_SMALLEST = 1e-12
"""Smaller probabilities count as this, without a gradient: 1/q, and its square in a gradient's norm, stay finite."""


def attention_kl(student_BHTT: torch.Tensor, teacher_BHTT: torch.Tensor, rows_BT: torch.Tensor) -> torch.Tensor:
    """KL(teacher's map ‖ student's map), mean over heads. Source: MobileBERT, arXiv 2004.02984, equation 2.

    Args:
        student_BHTT: attention probabilities, query × key.
        teacher_BHTT: the same of the teacher; where the numbers of heads differ, both are averaged over heads first.
        rows_BT: bool, the queries that count.

    Returns:
        [R], float32 or float64, in nats.

    """
    student_BHTT, teacher_BHTT = _comparable(student_BHTT, teacher_BHTT)
    ratio_BHTT = teacher_BHTT.clamp_min(_SMALLEST).log() - student_BHTT.clamp_min(_SMALLEST).log()
    return (teacher_BHTT * ratio_BHTT).sum(dim=3).mean(dim=1)[rows_BT]


def attention_mse(student_BHTT: torch.Tensor, teacher_BHTT: torch.Tensor, rows_BT: torch.Tensor) -> torch.Tensor:
    """Σ over keys of the squared differences, mean over heads. Source: TinyBERT, arXiv 1909.10351, equation 7.

    A sum over keys where TinyBERT has a mean, so that padding does not change the value.

    Args:
        student_BHTT: attention probabilities, query × key.
        teacher_BHTT: as in `attention_kl`.
        rows_BT: bool, the queries that count.

    Returns:
        [R], float32 or float64.

    """
    student_BHTT, teacher_BHTT = _comparable(student_BHTT, teacher_BHTT)
    return (student_BHTT - teacher_BHTT).square().sum(dim=3).mean(dim=1)[rows_BT]


def require_attentions(attentions: Sequence[torch.Tensor | None] | None, layers: int) -> list[torch.Tensor]:
    """The maps of all blocks, or an error: fused attention kernels return none, and the objective would silently be 0.

    Raises:
        ConfigError: a map is missing.

    """
    found = [attention for attention in attentions or () if attention is not None]
    if len(found) != layers:
        raise ConfigError(
            f"the model returned {len(found)} attention maps for {layers} layers",
            where="attention objectives",
            fix="load it with attn_implementation='eager', or use the relation objective, which needs no maps",
        )
    return found


def _comparable(student_BHTT: torch.Tensor, teacher_BHTT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(student_BHTT.dtype, torch.float32)
    student_BHTT, teacher_BHTT = student_BHTT.to(dtype), teacher_BHTT.detach().to(dtype)
    if student_BHTT.shape[1] != teacher_BHTT.shape[1]:
        student_BHTT, teacher_BHTT = student_BHTT.mean(1, keepdim=True), teacher_BHTT.mean(1, keepdim=True)
    assert student_BHTT.shape == teacher_BHTT.shape, "maps of the same tokens"
    return student_BHTT, teacher_BHTT
