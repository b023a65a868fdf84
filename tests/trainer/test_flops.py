"""Model FLOPs against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.trainer.flops import ModelFlops, peak_flops

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ATTENTION = 32 * 32 + 2 * 32 * 16 + 32 * 32


@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model(tied: bool) -> None:
    config = AutoConfig.for_model("llama", tie_word_embeddings=tied, **SHAPE)
    flops = ModelFlops.of(AutoModelForCausalLM.from_config(config))
    body = 3 * (ATTENTION + 3 * 32 * 64)
    assert flops == ModelFlops(body, 100 * 32, 3 * 4 * 8)
    # Records of 3 and 4 tokens, 5 supervised rows; a query and a key or value of a head: 2 · 8 each, n²/2 pairs.
    attention = 3 * 4 * (2 * 8 + 2 * 8) * (3**2 + 4**2) / 2
    assert flops.forward(np.array([3, 4], np.int32), 5) == 2 * (body * 7 + 3200 * 5) + attention


def test_of_a_mixture_of_experts_the_chosen_ones_count() -> None:
    config = AutoConfig.for_model("mixtral", num_local_experts=4, num_experts_per_tok=2, **SHAPE)
    flops = ModelFlops.of(AutoModelForCausalLM.from_config(config))
    assert flops.body == 3 * (ATTENTION + 32 * 4 + 2 * 3 * 32 * 64)


def test_float32_has_no_peak_to_be_held_against() -> None:
    assert peak_flops("fp32") is None
