"""The keys of a config that follow the layers, when only some layers stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COUNTED_FROM_THE_START = ("max_window_layers", "first_k_dense_replace")
"""These keys say that something holds for the first n layers."""
_COUNTED_FROM_THE_END = ("num_kv_shared_layers",)
"""These say so for the last n."""


def keep_layers_in_config(values: dict[str, Any], kept: Sequence[int], layers: int) -> dict[str, Any]:
    """A config's values for the layers `kept` of `layers`.

    Per-layer lists are every list that has an entry for each layer and `layer` in its name: layer_types,
    no_rope_layers, mlp_layer_types, attention_layers and their like. `mlp_only_layers` lists numbers of layers instead.

    Args:
        values: `config.to_dict()`.
        kept: numbers of the layers that stay, ascending.
        layers: number of layers before.

    """
    result = dict(values)
    for key, value in values.items():
        if isinstance(value, (list, tuple)) and "layer" in key and key != "mlp_only_layers" and len(value) >= layers:
            result[key] = [value[index] for index in kept]
    for key in _COUNTED_FROM_THE_START:
        if isinstance(values.get(key), int):
            result[key] = sum(index < values[key] for index in kept)
    for key in _COUNTED_FROM_THE_END:
        if isinstance(values.get(key), int):
            result[key] = sum(index >= layers - values[key] for index in kept)
    if "decoder_sparse_step" in values:
        result.update(_dense_layers(values, kept))
    if "num_nextn_predict_layers" in values:
        result["num_nextn_predict_layers"] = 0  # layers that predict further tokens are not part of the model here
    return result


def _dense_layers(values: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Qwen's MoE models have a dense layer where a rule or a list of numbers says so; afterwards only the list does."""
    step, listed = values["decoder_sparse_step"], values.get("mlp_only_layers") or []
    dense = [new for new, old in enumerate(kept) if old in listed or (old + 1) % step]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}
