"""Which layers stay."""

from __future__ import annotations

import pytest
import torch

from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.student.creation import cut_from_teacher
from llmdistill.student.cutting import decoder_layers, keep_layers
from llmdistill.student.layer_choice import (
    block_influence,
    choose_layers,
    divergence_without,
    first_last_layers,
    uniform_layers,
)
from tests.student.tiny import SEQUENCES, TINY, tiny_model


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(30, 12, [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]), (4, 2, [0, 3]), (4, 4, [0, 1, 2, 3]), (4, 1, [3])],
)
def test_uniform_layers(teacher: int, student: int, expected: list[int]) -> None:
    assert uniform_layers(teacher, student) == expected


@pytest.mark.parametrize(
    ("student", "expected"), [(1, [0]), (2, [0, 5]), (3, [0, 1, 5]), (4, [0, 1, 4, 5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_first_last_layers(student: int, expected: list[int]) -> None:
    assert first_last_layers(6, student) == expected


@pytest.mark.parametrize("rule", ["uniform", "first_last", "block_influence", "divergence"])
def test_more_layers_than_the_teacher_has_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="the teacher has 6 layers, 7 are asked for"):
        choose_layers(tiny_model("llama"), 7, rule, SEQUENCES)


def idle(name: str, numbers: tuple[int, ...]):
    """A model in which some layers add nothing to the residual stream."""
    model = tiny_model(name)
    with torch.no_grad():
        for number in numbers:
            for key, parameter in decoder_layers(model)[1][number].named_parameters():
                if (
                    not key.startswith(("input_layernorm", "post_attention_layernorm", "pre_", "ln_"))
                    or "gemma" in name
                ):
                    parameter.zero_()
                if "gemma" in name and "layernorm" in key:
                    parameter.fill_(-1.0)  # these norms multiply by 1 + weight
    return model


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("rule", ["block_influence", "divergence"])
def test_layers_that_do_nothing_are_the_ones_that_go(name: str, rule: str) -> None:
    model = idle(name, (1, 4))
    assert choose_layers(model, 4, rule, SEQUENCES) == [0, 2, 3, 5]
    assert not any("forward" in vars(layer) for layer in decoder_layers(model)[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "bloom", "deepseek_v3"])
def test_divergence_without_layers_is_that_of_the_cut_model(name: str) -> None:
    model = tiny_model(name)
    tokens = torch.tensor([SEQUENCES[0]])
    with torch.no_grad():
        whole, cut = (m(tokens).logits.log_softmax(dim=-1) for m in (model, keep_layers(model, [0, 2, 3, 5])))
    expected = (whole.exp() * (whole - cut)).sum(dim=-1).mean()
    assert divergence_without(model, [1, 4], SEQUENCES[:1]) == pytest.approx(float(expected), rel=1e-4)
    assert divergence_without(model, [], SEQUENCES) == pytest.approx(0, abs=1e-6)


def test_block_influence_of_a_known_layer() -> None:
    """States that stay have influence 0; all lie between 0 and 2."""
    influence = block_influence(idle("llama", (3,)), SEQUENCES)
    assert influence[3] == pytest.approx(0, abs=1e-6)
    assert all(0 < value < 2 for number, value in enumerate(influence) if number != 3)


def test_a_list_of_layers_is_taken_as_it_is() -> None:
    model = tiny_model("llama")
    assert cut_from_teacher(model, FromTeacherConfig(layers=(1, 2, 5))).layers == [1, 2, 5]
    for layers in ((2, 1), (1, 1), (0, 6)):
        with pytest.raises(ConfigError, match="ascending and each once"):
            cut_from_teacher(model, FromTeacherConfig(layers=layers))


def test_measuring_needs_sequences() -> None:
    with pytest.raises(DataError, match="calibration"):
        cut_from_teacher(tiny_model("llama"), FromTeacherConfig(layers=2, choose_layers="divergence"), [[1]])


def test_an_unknown_architecture_is_cut_by_layers_alone() -> None:
    from transformers import StableLmConfig, StableLmForCausalLM

    config = StableLmConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = StableLmForCausalLM(config).eval()
    for rule in ("uniform", "divergence"):
        made = cut_from_teacher(model, FromTeacherConfig(layers=2, choose_layers=rule), SEQUENCES)
        assert made.student.config.num_hidden_layers == 2
    with pytest.raises(ConfigError, match="stablelm"):
        cut_from_teacher(model, FromTeacherConfig(hidden_size=16), SEQUENCES)
