"""Objectives in which a model is its own teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from llmdistill.objectives.chunked_head import HeadSums, chunked_head
from llmdistill.objectives.targets import HeadTargets
from llmdistill.objectives.terms import Term


def deep_supervision(
    layers_RD: Sequence[torch.Tensor],
    final_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    actual_ids_R: torch.Tensor,
    terms: Sequence[Term],
    vocabulary_size: int | None = None,
    measure_gradients: bool = False,
    softcap: float | None = None,
    row_weights_R: torch.Tensor | None = None,
) -> HeadSums:
    """Predictions of intermediate layers learn from those of the last one, through the same head.

    Source: Be Your Own Teacher, arXiv 1905.08094; on language models LayerSkip, arXiv 2404.16710.

    Args:
        layers_RD: states of intermediate layers, each after the model's final norm; at least one.
        final_RD: the last layer's, after the same norm; it and the head are constant as targets.
        weight_VD: weight of the head.
        actual_ids_R: the tokens that follow.
        terms: what the layers are trained on, usually a divergence.
        vocabulary_size: see `chunked_head`.
        measure_gradients: see `chunked_head`.
        softcap: see `chunked_head`.
        row_weights_R: see `Targets`.

    Returns:
        mean over the layers.

    """
    targets = HeadTargets(
        actual_ids_R=actual_ids_R,
        row_weights_R=row_weights_R,
        hidden_RD=final_RD.detach(),
        head_weight=weight_VD.detach()[:vocabulary_size],
        softcap=softcap,
    )
    parts = [
        chunked_head(layer_RD, weight_VD, targets, terms, vocabulary_size, measure_gradients, softcap=softcap)
        for layer_RD in layers_RD
    ]
    squares = [part.squared_gradients for part in parts if part.squared_gradients is not None]
    return HeadSums(
        torch.stack([part.total for part in parts]).mean(),
        torch.stack([part.values for part in parts]).mean(0),
        torch.stack(squares).mean(0) if squares else None,
    )


def contrastive(
    first_ND: torch.Tensor,
    second_ND: torch.Tensor,
    temperature: float = 0.05,
    groups_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """-log softmax of the cosines of view 1 of a sequence with view 2 of all of them, at its own.

    Two views are two passes with different dropout. Other sequences are told apart, the same one agrees.

    Source: SimCSE, arXiv 2104.08821, equation 4.

    Args:
        first_ND: a vector per sequence (`mean_states`).
        second_ND: the same sequences, second view.
        temperature: of the softmax.
        groups_N: int64; a sequence is told from those of its own group only. All are one group by default.

    Returns:
        [N], float32 or float64; 0 for a sequence that is alone in its group.

    """
    dtype = torch.promote_types(first_ND.dtype, torch.float32)
    cosines_NN = normalize(first_ND.to(dtype), dim=1) @ normalize(second_ND.to(dtype), dim=1).T
    logits_NN = cosines_NN / temperature
    if groups_N is not None:
        logits_NN = logits_NN.masked_fill(groups_N.unsqueeze(0) != groups_N.unsqueeze(1), float("-inf"))
    return -logits_NN.log_softmax(dim=1).diagonal()


def mean_states(hidden_BTD: torch.Tensor, segments_BT: torch.Tensor, records: int) -> torch.Tensor:
    """Mean of the states of each record's tokens, in any packing.

    Args:
        hidden_BTD: states.
        segments_BT: int64, 0 … records - 1, below 0 for padding.
        records: number of records.

    Returns:
        [records, D], float32 or float64; 0 for a record without tokens.

    """
    inside_BT = segments_BT >= 0
    states_RD = hidden_BTD[inside_BT].to(torch.promote_types(hidden_BTD.dtype, torch.float32))
    sums_ND = states_RD.new_zeros(records, states_RD.shape[1]).index_add(0, segments_BT[inside_BT], states_RD)
    return sums_ND / segments_BT[inside_BT].bincount(minlength=records).clamp_min(1).unsqueeze(1)
