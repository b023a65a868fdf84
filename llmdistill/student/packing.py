"""Forward passes over packed sequences, for every architecture.

Most architectures bound attention where positions start anew. One that knows no positions (ALiBi) would let a record
see the record before it, so there each record gets a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError

_WITHOUT_POSITIONS = frozenset({"bloom"})
"""Values of `model_type`."""


@dataclass(frozen=True)
class PackedOutput:
    """What a model without its head says of B packed sequences of T slots; L is the number of blocks."""

    final_BTD: torch.Tensor
    """States after the last norm: what the head reads."""
    hidden: tuple[torch.Tensor, ...] = ()
    """L + 1 tensors [B, T, D]; 0 is the embeddings, the last equals `final_BTD`."""
    attentions: tuple[torch.Tensor, ...] = ()
    """L tensors [B, H, T, T]: probabilities, query × key."""


def forward_packed(
    model: PreTrainedModel,
    token_ids_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    hidden: bool = False,
    attentions: bool = False,
) -> PackedOutput:
    """Run a causal language model without its head.

    Args:
        model: any.
        token_ids_BT: records one after the other.
        positions_BT: position within the record.
        hidden: keep the states of all layers.
        attentions: keep the attention maps; the model must run eager attention.

    Raises:
        ConfigError: attention maps of a model that takes records one by one.

    """
    flags = {"use_cache": False, "output_hidden_states": hidden, "output_attentions": attentions}
    if model.config.model_type not in _WITHOUT_POSITIONS:
        output: Any = model.base_model(input_ids=token_ids_BT, position_ids=positions_BT, **flags)
        return PackedOutput(
            output.last_hidden_state,
            tuple(output.hidden_states) if hidden else (),
            tuple(output.attentions) if attentions else (),
        )
    if attentions:
        raise ConfigError(
            f"{model.config.model_type} takes the records of a sequence one by one and has no maps of all of it",
            where="attention objectives",
            fix="use objectives on hidden states for this family",
        )
    record_S, place_S = (positions_BT.flatten() == 0).long().cumsum(0) - 1, positions_BT.flatten()
    size = int(record_S[-1]) + 1, int(place_S.max()) + 1
    ids_ML, mask_ML = token_ids_BT.new_zeros(size), token_ids_BT.new_zeros(size)
    ids_ML[record_S, place_S] = token_ids_BT.flatten()
    mask_ML[record_S, place_S] = 1
    output = model.base_model(input_ids=ids_ML, attention_mask=mask_ML, **flags)

    def packed(states_MLD: torch.Tensor) -> torch.Tensor:
        return states_MLD[record_S, place_S].view(*token_ids_BT.shape, -1)

    inner = tuple(packed(states) for states in output.hidden_states) if hidden else ()
    return PackedOutput(packed(output.last_hidden_state), inner)
