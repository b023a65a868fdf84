"""Seeded sampling for transformers' `generate`, whose own draws depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmdistill.teacher.capture import uniforms


class DrawTokens:
    """A logits processor that draws each row's next token itself and leaves only that one possible.

    The uniform number is a hash of the request's seed and of the token's place in its response.

    Args:
        seeds: one for each row of the batch.
        prompt: length of the padded prompts.
        temperature: 0 is greedy.
        top_p: the most likely tokens are kept until they hold this much.

    """

    def __init__(self, seeds: Sequence[int], prompt: int, temperature: float, top_p: float) -> None:
        self._seeds_B = np.array(seeds, np.uint64)
        self._prompt = prompt
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """float32 [B, V] scores with one finite entry a row."""
        if self._temperature == 0:
            return scores
        places_B = np.full(len(self._seeds_B), input_ids.shape[1] - self._prompt)
        uniform_B1 = torch.from_numpy(uniforms(self._seeds_B, places_B, 1)).to(scores.device)
        order = (scores.float() / self._temperature).softmax(dim=1, dtype=torch.float64).sort(dim=1, descending=True)
        cumulative_BV = order.values.cumsum(dim=1)
        # The token that crosses top_p is kept.
        kept_B1 = (cumulative_BV < self._top_p).sum(dim=1, keepdim=True).clamp(max=scores.shape[1] - 1)
        total_B1 = cumulative_BV.gather(1, kept_B1)
        place_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * total_B1, right=True)
        drawn_B1 = order.indices.gather(1, place_B1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn_B1, 0.0)
