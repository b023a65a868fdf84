"""Which of a teacher's layers a student keeps.

| rule | keeps |
|---|---|
| uniform | layers at equal distances, the first and the last among them (DistilBERT, arXiv 1910.01108) |
| first_last | the first half of the number from the start, the rest from the end |
| block_influence | the layers that turn their input most (ShortGPT, arXiv 2403.03853) |
| divergence | what is left after dropping, one by one, the layer without which the teacher changes least |

`divergence` is SLEB (arXiv 2402.09025) with KL(teacher ‖ shortened teacher) in place of perplexity. It measures again
after each drop, because two neighbours that can each be spared often cannot both be: about L²/2 forward passes over the
calibration sequences instead of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from llmdistill.errors import ConfigError
from llmdistill.student.calibration import Sequences, token_batch
from llmdistill.student.cutting import decoder_layers

LayerRule = Literal["uniform", "first_last", "block_influence", "divergence"]

_ROWS_PER_SEQUENCE = 64
"""Rows, at equal distances, whose divergence is measured: all of a large vocabulary's would not fit memory."""


def choose_layers(model: PreTrainedModel, count: int, rule: LayerRule, sequences: Sequences) -> list[int]:
    """The layers to keep, ascending.

    Args:
        model: the teacher; unchanged afterwards.
        count: how many stay.
        rule: see above.
        sequences: for the rules that measure.

    Raises:
        ConfigError: the teacher has fewer layers.

    """
    total = len(decoder_layers(model)[1])
    if rule == "uniform":
        return uniform_layers(total, count)
    if rule == "first_last":
        return first_last_layers(total, count)
    require_count(total, count)
    if rule == "block_influence":
        influence = block_influence(model, sequences)
        return sorted(sorted(range(total), key=lambda layer: (-influence[layer], layer))[:count])
    return _least_divergence(model, total, count, sequences)


def require_count(teacher_layers: int, student_layers: int) -> None:
    """Refuse a student that is deeper than its teacher."""
    if student_layers > teacher_layers:
        raise ConfigError(
            f"the teacher has {teacher_layers} layers, {student_layers} are asked for",
            where="student.from_teacher.layers",
            fix=f"use at most {teacher_layers}",
        )


def uniform_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Indices of the kept layers at equal distances, first and last included; of one layer, the last.

    Raises:
        ConfigError: the teacher has fewer layers.

    """
    require_count(teacher_layers, student_layers)
    if student_layers == 1:
        return [teacher_layers - 1]
    step = (teacher_layers - 1) / (student_layers - 1)
    return [round(index * step) for index in range(student_layers)]


def first_last_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Half of the layers from the start (the odd one too), the others from the end.

    Raises:
        ConfigError: the teacher has fewer layers.

    """
    require_count(teacher_layers, student_layers)
    last = student_layers // 2
    return [*range(student_layers - last), *range(teacher_layers - last, teacher_layers)]


def require_layers(layers: Collection[int], teacher_layers: int) -> list[int]:
    """A list of layers as a person gave it.

    Raises:
        ConfigError: it is not ascending, or names a layer that the teacher does not have.

    """
    listed = list(layers)
    if listed != sorted(set(listed)) or not listed or listed[0] < 0 or listed[-1] >= teacher_layers:
        raise ConfigError(
            f"{listed} must name layers 0 … {teacher_layers - 1}, ascending and each once",
            where="student.from_teacher.layers",
        )
    return listed


@torch.no_grad()
def block_influence(model: PreTrainedModel, sequences: Sequences) -> list[float]:
    """1 − mean cosine of the states before and after each layer."""
    _, layers = decoder_layers(model)
    sums, tokens = [0.0] * len(layers), 0

    def hook(number: int) -> Any:
        def watch(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            before = _hidden(arguments, keywords).float()
            after = (output[0] if isinstance(output, tuple) else output).float()
            sums[number] += float((1 - torch.cosine_similarity(before, after, dim=-1)).double().sum())

        return watch

    handles = [layer.register_forward_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        for sequence in sequences:
            model(token_batch(model, sequence), use_cache=False)
            tokens += len(sequence)
    finally:
        for handle in handles:
            handle.remove()
    return [value / tokens for value in sums]


@torch.no_grad()
def divergence_without(model: PreTrainedModel, dropped: Collection[int], sequences: Sequences) -> float:
    """Mean KL(model ‖ the model without some layers) in nats."""
    return _Divergence(model, sequences).without(dropped)


class _Divergence:
    """Keeps the whole model's distributions, so that they are computed once."""

    def __init__(self, model: PreTrainedModel, sequences: Sequences) -> None:
        self._model = model
        self._batches = [token_batch(model, sequence) for sequence in sequences]
        self._in_tuple = _layers_return_tuples(model, self._batches[0])
        self._whole = [self._logprobs(batch) for batch in self._batches]

    def _logprobs(self, batch: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(0, batch.shape[1] - 1, min(_ROWS_PER_SEQUENCE, batch.shape[1])).round().long()
        logits_RV: torch.Tensor = self._model(batch, use_cache=False).logits[0, rows.to(batch.device)]
        return logits_RV.float().log_softmax(dim=-1)

    def without(self, dropped: Collection[int]) -> float:
        total, rows = 0.0, 0
        with _left_out(self._model, dropped, self._in_tuple):
            for batch, whole_RV in zip(self._batches, self._whole, strict=True):
                kl_RV = whole_RV.exp() * (whole_RV - self._logprobs(batch))
                total += float(kl_RV.double().sum())
                rows += len(whole_RV)
        return total / rows


@torch.no_grad()
def _least_divergence(model: PreTrainedModel, total: int, count: int, sequences: Sequences) -> list[int]:
    measure = _Divergence(model, sequences)
    dropped: list[int] = []
    while total - len(dropped) > count:
        candidates = [layer for layer in range(total) if layer not in dropped]
        dropped.append(min(candidates, key=lambda layer: (measure.without([*dropped, layer]), layer)))
    return [layer for layer in range(total) if layer not in dropped]


@contextlib.contextmanager
def _left_out(model: PreTrainedModel, dropped: Collection[int], in_tuple: bool) -> Iterator[None]:
    """Layers pass on what they get; lists that follow the layers keep their places."""
    layers: Any = decoder_layers(model)[1]

    def skip(*arguments: Any, **keywords: Any) -> Any:
        states = _hidden(arguments, keywords)
        return (states,) if in_tuple else states

    for number in dropped:
        layers[number].forward = skip  # the instance's attribute hides the class's method
    try:
        yield
    finally:
        for number in dropped:
            del layers[number].forward


def _layers_return_tuples(model: PreTrainedModel, batch: torch.Tensor) -> bool:
    found = []
    layers = decoder_layers(model)[1]
    handle = layers[0].register_forward_hook(lambda module, arguments, output: found.append(isinstance(output, tuple)))
    try:
        model(batch[:, :1], use_cache=False)
    finally:
        handle.remove()
    return found[0]


def _hidden(arguments: Any, keywords: Any) -> torch.Tensor:
    states: torch.Tensor = arguments[0] if arguments else keywords["hidden_states"]
    return states
