"""Model FLOPs of a training step, and the share of the hardware's peak that they make.

For each token that passes a weight of a matrix product: 2 forward and 4 backward (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), of which 2 where the weight itself is not trained. Attention adds, for each record of n tokens and each
layer, 4 · heads · head width · n²/2 forward (a token sees n/2 others on average) and twice that backward. The head
counts on supervised rows only, where it is computed. Passes beside the student's own count as what they are: two more
of its blocks for contrastive views, one more of its head for each layer of deep supervision, and one forward of a live
teacher (with its head where its logits are used) and of an earlier student. What is computed twice to save memory does
not count, as in the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), nor do
projectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""FLOP/s of dense bf16 and fp16 matrix products, by a part of the device's name; NVIDIA's data sheets, SXM boards."""


@dataclass(frozen=True)
class ModelFlops:
    """What one forward pass of a model takes."""

    body: int
    """Weights that each token is multiplied by, without the head."""
    head: int
    attention: int
    """Layers · heads · head width."""
    frozen_body: int = 0
    """Of the body, weights that are not trained."""
    frozen_head: int = 0
    """The same of the head."""

    @staticmethod
    def of(model: PreTrainedModel) -> ModelFlops:
        """Count a whole model, before ZeRO-3 takes it apart; of a mixture of experts only the chosen ones."""
        config = model.config
        chosen = getattr(config, "num_experts_per_tok", None)
        outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        body = frozen = 0
        for name, parameter in model.named_parameters():
            if id(parameter) in outside or parameter.ndim < 2:
                continue
            # Experts lie in one tensor per layer, whose first axis counts them.
            sparse = chosen is not None and ".experts." in name and parameter.ndim == 3
            passed = parameter.numel() * (chosen or 0) // len(parameter) if sparse else parameter.numel()
            body += passed
            frozen += 0 if parameter.requires_grad else passed
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = config.num_hidden_layers * config.num_attention_heads * width
        head = model.get_output_embeddings().weight
        return ModelFlops(body, head.numel(), attention, frozen, 0 if head.requires_grad else head.numel())

    def forward(self, lengths: np.ndarray, rows: int) -> float:
        """FLOPs of a forward pass over records of these lengths, of which so many rows are supervised."""
        lengths = lengths.astype(np.float64)
        return float(2 * (self.body * lengths.sum() + self.head * rows) + 2 * self.attention * (lengths**2).sum())

    def training(self, lengths: np.ndarray, rows: int) -> float:
        """FLOPs of a forward and a backward pass."""
        without = 2 * (self.frozen_body * float(lengths.sum()) + self.frozen_head * rows)
        return 3 * self.forward(lengths, rows) - without


@dataclass(frozen=True)
class StepFlops:
    """What the models of a training step take."""

    student: ModelFlops
    views: int = 0
    """Further passes of the student's blocks."""
    heads: int = 0
    """Further uses of its head."""
    teacher: ModelFlops | None = None
    """The live teacher."""
    teacher_head: bool = False
    """Whether its logits are computed."""
    earlier: ModelFlops | None = None
    """An earlier student."""

    def of(self, lengths: np.ndarray, rows: int) -> float:
        """FLOPs of a step over records of these lengths, of which so many rows are supervised."""
        total = self.student.training(lengths, rows) + self.views * self.student.training(lengths, 0)
        total += self.heads * self.student.training(lengths[:0], rows)
        if self.teacher is not None:
            total += self.teacher.forward(lengths, rows if self.teacher_head else 0)
        if self.earlier is not None:
            total += self.earlier.forward(lengths, rows)
        return total


def peak_flops(precision: str) -> float | None:
    """FLOP/s that this rank's GPU can do in a precision; None where that is not known, as for CPUs."""
    if precision == "fp32" or not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name()
    return next((peak for name, peak in _PEAKS.items() if name in device), None)
