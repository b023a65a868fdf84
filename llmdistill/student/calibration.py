"""How much each part of a teacher does, measured on some token sequences.

| part | importance | source |
|---|---|---|
| hidden channel | root mean square of the layer norms' outputs there | Minitron, arXiv 2407.14679, section 2.2 |
| neuron, query head | root mean square of what it adds to the residual stream | the same, with the outgoing weights |
| expert | share of the tokens that the router sends it | |
| layer | 1 − mean cosine between the states before and after it | ShortGPT, arXiv 2403.03853 |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.errors import DataError
from llmdistill.student.cutting import decoder_layers
from llmdistill.student.families import Family
from llmdistill.student.shape import shape_of

Sequences = Sequence[Sequence[int]]
"""Token ids of calibration sequences."""


@dataclass(frozen=True)
class Importance:
    """Importance of a teacher's items; L layers, float64, on the CPU."""

    hidden_LD: torch.Tensor
    """[L, hidden]."""
    head_LH: torch.Tensor
    """[L, query heads]."""
    mlp_LN: list[torch.Tensor]
    """[neurons] for each layer; empty where the layer is a mixture of experts."""
    expert_LE: list[torch.Tensor]
    """[experts] for each layer, shares that sum to experts per token; empty in dense layers."""
    routing_LE: list[torch.Tensor]
    """[experts] for each layer: mean routing weight over all tokens, 0 where a token went elsewhere."""


def require_sequences(sequences: Iterable[Sequence[int]]) -> Sequences:
    """The sequences that hold two tokens or more.

    Raises:
        DataError: there are none.

    """
    usable = [tuple(sequence) for sequence in sequences if len(sequence) > 1]
    if not usable:
        raise DataError(
            "choosing by importance needs calibration sequences, and there are none",
            where="student.from_teacher",
            fix="run `llmdistill generate` first",
        )
    return usable


def token_batch(model: PreTrainedModel, sequence: Sequence[int]) -> torch.Tensor:
    """A sequence as a batch of one, where the model lies."""
    return torch.tensor([list(sequence)], device=model.device)


class _Meter:
    """Running sums over tokens, by name."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], torch.Tensor] = {}
        self.tokens: dict[tuple[str, int], int] = {}

    def add(self, name: str, layer: int, total_X: torch.Tensor, tokens: int) -> None:
        """Add a sum over tokens."""
        key = name, layer
        total_X = total_X.double().cpu()
        self.sums[key] = self.sums[key] + total_X if key in self.sums else total_X
        self.tokens[key] = self.tokens.get(key, 0) + tokens

    def mean(self, name: str, layer: int) -> torch.Tensor:
        """Mean over tokens; empty where nothing was measured."""
        key = name, layer
        return self.sums[key] / self.tokens[key] if key in self.sums else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def measure_importance(model: PreTrainedModel, family: Family, sequences: Sequences) -> Importance:
    """Importance of every item, one forward pass per sequence. The model is unchanged afterwards."""
    _, layers = decoder_layers(model)
    meter = _Meter()
    handles = [handle for number, layer in enumerate(layers) for handle in _watch(layer, number, model, family, meter)]
    was_training = model.training
    model.eval()
    try:
        for sequence in sequences:
            model(token_batch(model, sequence), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    count = range(len(layers))
    return Importance(
        hidden_LD=torch.stack([meter.mean("hidden", layer).sqrt() for layer in count]),
        head_LH=torch.stack([meter.mean("head", layer).sqrt() for layer in count]),
        mlp_LN=[meter.mean("mlp", layer).sqrt() for layer in count],
        expert_LE=[meter.mean("expert", layer) for layer in count],
        routing_LE=[meter.mean("routing", layer) for layer in count],
    )


def _watch(layer: Any, number: int, model: PreTrainedModel, family: Family, meter: _Meter) -> list[Any]:
    modules = dict(layer.named_modules())
    shape = shape_of(model.config, family)

    def add(name: str, values_NX: torch.Tensor) -> None:
        meter.add(name, number, values_NX.sum(dim=0, dtype=torch.float64), len(values_NX))

    def on_norm(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        add("hidden", output.flatten(0, -2).float().square())

    def on_heads(module: nn.Module, arguments: Any) -> None:
        states_HNd = arguments[0].flatten(0, 1).float().unflatten(1, (shape.head, -1)).transpose(0, 1)
        weight_HdD = _outgoing(module, family).unflatten(0, (shape.head, -1))
        # Σ_n ‖x_n W‖² = tr(Wᵀ (Σ_n x_nᵀ x_n) W), without a tensor of tokens × heads × hidden.
        squares_H = (states_HNd.mT @ states_HNd @ weight_HdD * weight_HdD).sum(dim=(1, 2))
        meter.add("head", number, squares_H, states_HNd.shape[1])

    def on_neurons(module: nn.Module, arguments: Any) -> None:
        norms_M = _outgoing(module, family).square().sum(dim=1)
        add("mlp", arguments[0].flatten(0, -2).float().square() * norms_M)

    def on_router(module: nn.Module, arguments: Any, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        _, weights_NK, chosen_NK = output
        zeros = weights_NK.new_zeros(len(chosen_NK), shape.expert, dtype=torch.float32)
        add("expert", zeros.scatter(1, chosen_NK, 1.0))
        add("routing", zeros.scatter(1, chosen_NK, weights_NK.float()))

    handles = [modules[name].register_forward_hook(on_norm) for name in family.norms]
    handles.append(modules[family.attention_output].register_forward_pre_hook(on_heads))
    if family.mlp_output in modules:
        handles.append(modules[family.mlp_output].register_forward_pre_hook(on_neurons))
    if family.router in modules:
        handles.append(modules[family.router].register_forward_hook(on_router))
    return handles


def _outgoing(module: nn.Module, family: Family) -> torch.Tensor:
    """Weight [inputs, outputs] in float32."""
    weight: Any = module.weight
    result: torch.Tensor = (weight if family.transposed else weight.T).float()
    return result
