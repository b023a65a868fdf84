"""Shapes from a number of parameters, and shapes that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import cut_from_teacher
from llmdistill.student.cutting import decoder_layers
from llmdistill.student.families import family_of
from llmdistill.student.plan import plan_shape
from llmdistill.student.shape import shape_of
from llmdistill.student.sizes import ParameterCount
from tests.student.tiny import SEQUENCES, TINY, tiny_model


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def counter(model: Any) -> ParameterCount:
    family = family_of(model.config)
    return ParameterCount(
        dict(model.named_parameters()), decoder_layers(model)[0], family, shape_of(model.config, family)
    )


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_number_of_parameters_is_met_within_5_percent(name: str, share: float) -> None:
    if name == "bloom":
        share = 0.67 if share == 0.7 else 0.4  # three numbers of heads leave it few shapes
    teacher = tiny_model(name)
    asked = round(parameters(teacher) * share)
    made = cut_from_teacher(teacher, FromTeacherConfig(parameters=asked), SEQUENCES)
    assert abs(parameters(made.student) / asked - 1) <= 0.05
    shape = shape_of(made.student.config, family_of(made.student.config))
    assert counter(teacher)(shape) == parameters(made.student)
    assert shape.head_dim == shape_of(teacher.config, family_of(teacher.config)).head_dim
    assert shape.head % shape.kv == 0 and shape.hidden % shape.head == 0 and shape.hidden % 8 == 0
    chosen = next(line for line in made.table.splitlines() if line.startswith("chosen"))
    assert f"{parameters(made.student):,}" in chosen


# The shapes of teachers, as their configs are published, and sizes that people ask for.
LARGE = {
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "Qwen3-8B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "GPT-2-XL": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "BLOOM-7B1": {"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("Llama-3.1-8B", "4B"), ("Llama-3.1-8B", "1.2B"), ("Qwen3-8B", "1.7B"), ("Qwen3-8B", "0.6B"),
        ("Qwen2.5-7B", "1.5B"), ("SmolLM2-135M", "60M"), ("GPT-2-XL", "124M"), ("BLOOM-7B1", "560M"),
    ],
)  # fmt: skip
def test_published_teachers_have_shapes_for_usual_sizes(name: str, asked: str) -> None:
    with torch.device("meta"):
        teacher = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LARGE[name]))
    family = family_of(teacher.config)
    wanted = FromTeacherConfig(parameters=asked)
    count = counter(teacher)
    shape = shape_of(teacher.config, family)
    assert count(shape) == parameters(teacher)
    chosen = plan_shape(wanted, count, shape, family, teacher.config).shape
    assert abs(count(chosen) / wanted.parameters - 1) <= 0.05
    step = 64 if shape.hidden >= 1024 else 8
    assert chosen.hidden % step == 0 and chosen.mlp % step == 0
    assert chosen.head // chosen.kv == shape.head // shape.kv
    assert min(chosen.layers / shape.layers, chosen.hidden / shape.hidden) > 0.15


def test_given_sizes_stay_in_the_choice() -> None:
    teacher = tiny_model("llama")
    made = cut_from_teacher(teacher, FromTeacherConfig(parameters=120_000, layers=4, num_attention_heads=4), SEQUENCES)
    assert made.student.config.num_hidden_layers == 4
    assert made.student.config.num_attention_heads == 4
    with pytest.raises(ConfigError, match=r"no shape has 500 parameters.*nearest has"):
        cut_from_teacher(teacher, FromTeacherConfig(parameters=500), SEQUENCES)


@pytest.mark.parametrize(
    ("name", "sizes", "fault"),
    [
        ("llama", {"hidden_size": 30}, "hidden_size 30 is not a multiple of 4 attention heads\n  fix: use 32"),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 2}, "3 attention heads cannot share 2"),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1}, "4 heads per key-value head are more than"),
        ("llama", {"intermediate_size": 129}, "the teacher has 128 intermediate size, 129 are asked for"),
        ("llama", {"experts": 2}, "leave it out"),
        ("qwen2", {"hidden_size": 40}, "2 heads of size 16 do not make hidden_size 40"),
        ("bloom", {"intermediate_size": 128}, "4 neurons for each hidden channel"),
    ],
)
def test_e5_sizes_that_do_not_fit_together_are_refused(name: str, sizes: dict[str, int], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cut_from_teacher(tiny_model(name), FromTeacherConfig(**sizes), SEQUENCES)
    assert fault in str(caught.value)


def test_e5_the_size_of_a_head_is_stated_where_widths_change() -> None:
    student = cut_from_teacher(tiny_model("llama_tied"), FromTeacherConfig(hidden_size=32), SEQUENCES).student
    assert student.config.to_diff_dict()["head_dim"] == 16  # not 32 / 4
