"""Model FLOPs against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.config.student import LoRAConfig
from llmdistill.student.adapters import add_adapters
from llmdistill.trainer.flops import ModelFlops, StepFlops, peak_flops
from llmdistill.trainer.model import DistillationModule
from tests.trainer.test_live_teacher import parse

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


def test_every_pass_of_a_step_counts_as_what_it_is() -> None:
    student, other = ModelFlops(1000, 100, 10), ModelFlops(500, 50, 5)
    lengths = np.array([3, 4], np.int32)
    tokens, pairs, rows = 7, 25, 5
    own = 6 * (1000 * tokens + 100 * rows) + 6 * 10 * pairs
    assert StepFlops(student).of(lengths, rows) == own
    views = 2 * (6 * 1000 * tokens + 6 * 10 * pairs)
    assert StepFlops(student, views=2).of(lengths, rows) == own + views
    assert StepFlops(student, heads=3).of(lengths, rows) == own + 3 * 6 * 100 * rows
    states = 2 * 500 * tokens + 2 * 5 * pairs
    assert StepFlops(student, teacher=other).of(lengths, rows) == own + states
    assert StepFlops(student, teacher=other, teacher_head=True).of(lengths, rows) == own + states + 2 * 50 * rows
    assert StepFlops(student, earlier=other).of(lengths, rows) == own + states + 2 * 50 * rows


def test_weights_that_are_not_trained_get_no_gradient() -> None:
    config = AutoConfig.for_model("llama", tie_word_embeddings=False, **SHAPE)
    model = AutoModelForCausalLM.from_config(config)
    whole = ModelFlops.of(model)
    add_adapters(model, LoRAConfig(r=4), 0)
    flops = ModelFlops.of(model)
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    adapters = 3 * sum(4 * (inner + outer) for inner, outer in widths)
    assert flops == ModelFlops(whole.body + adapters, whole.head, whole.attention, whole.body, whole.head)
    lengths, attention = np.array([7], np.int32), 6 * whole.attention * 49
    expected = 4 * (whole.body * 7 + whole.head * 5) + 6 * adapters * 7 + attention
    assert flops.training(lengths, 5) == expected


def test_a_module_knows_its_passes() -> None:
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    objectives = parse({"type": "contrastive"}, {"type": "deep_supervision", "layers": [1, 2]})
    flops = DistillationModule(student, 100, objectives).model_flops()
    assert (flops.views, flops.heads, flops.teacher, flops.earlier) == (2, 2, None, None)


def test_float32_has_no_peak_to_be_held_against() -> None:
    assert peak_flops("fp32") is None
