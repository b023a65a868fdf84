"""Final hidden states of packed sequences, for every architecture.

Most architectures bound attention where positions start anew. One that knows no positions (ALiBi) would let a record
see the record before it, so there each record gets a row of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

_WITHOUT_POSITIONS = frozenset({"bloom"})
"""Values of `model_type`."""


def packed_hidden_states(
    student: PreTrainedModel, token_ids_BT: torch.Tensor, positions_BT: torch.Tensor
) -> torch.Tensor:
    """States after the last norm [B, T, D].

    Args:
        student: a causal language model.
        token_ids_BT: records one after the other.
        positions_BT: position within the record.

    """
    if student.config.model_type not in _WITHOUT_POSITIONS:
        output: Any = student.base_model(input_ids=token_ids_BT, position_ids=positions_BT, use_cache=False)
        hidden_BTD: torch.Tensor = output.last_hidden_state
        return hidden_BTD
    starts = (positions_BT.flatten() == 0).long()
    record_S, place_S = starts.cumsum(0) - 1, positions_BT.flatten()
    size = int(record_S[-1]) + 1, int(place_S.max()) + 1
    ids_ML, mask_ML = token_ids_BT.new_zeros(size), token_ids_BT.new_zeros(size)
    ids_ML[record_S, place_S] = token_ids_BT.flatten()
    mask_ML[record_S, place_S] = 1
    output = student.base_model(input_ids=ids_ML, attention_mask=mask_ML, use_cache=False)
    hidden_SD: torch.Tensor = output.last_hidden_state[record_S, place_S]
    return hidden_SD.view(*token_ids_BT.shape, -1)
