"""Students with random weights, and vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmdistill.config.student import StudentConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import create_student
from llmdistill.student.vocabulary import grow_vocabulary

SIZES = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip


def test_the_seed_alone_decides_the_weights(tiny_teacher: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for number, seed in enumerate((3, 3, 4)):
        torch.rand(number)
        before = torch.random.get_rng_state()
        create_student(StudentConfig(config=SIZES, seed=seed), tiny_teacher, tmp_path / str(number))
        assert torch.equal(torch.random.get_rng_state(), before)
    torch.random.set_rng_state(state)
    first, second, third = (AutoModelForCausalLM.from_pretrained(str(tmp_path / name)) for name in "012")
    assert first.dtype == torch.bfloat16
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)
    assert first.config.vocab_size == 49152
    assert first.config.eos_token_id == 2


def test_a_folder_with_a_config(tiny_teacher: Path, tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=49280, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(str(tmp_path / "config"))
    wanted = StudentConfig(config=str(tmp_path / "config"), dtype="float32")
    assert "random weights" in create_student(wanted, tiny_teacher, tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(str(tmp_path / "student"))
    assert student.dtype == torch.float32
    assert student.get_input_embeddings().weight.shape == (49280, 32)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "qwen2", "hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of 4"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads cannot share 4 key-value heads"),
        ({"head_dim": None}, "head_dim is not given, and qwen3 would take 128"),
        ({"vocab_size": 1000}, "vocab_size 1000 is smaller than the 49152 tokens"),
        ({"model_type": "qwen33"}, "is no config of a model"),
    ],
)
def test_e5_configs_that_do_not_fit_are_refused(tiny_teacher: Path, tmp_path: Path, changes: dict, fault: str) -> None:
    values = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=fault):
        create_student(StudentConfig(config=values), tiny_teacher, tmp_path)


@pytest.mark.parametrize(("tokens", "rows"), [(50, 64), (64, 64), (70, 70)])
def test_v3_embeddings_only_grow(tokens: int, rows: int) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    old = model.model.embed_tokens.weight.detach().clone()
    state = torch.random.get_rng_state()
    assert grow_vocabulary(model, tokens, seed=0) == rows - 64
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (rows, 16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight[:64], old)
    assert model.config.vocab_size == rows


def test_v3_a_padded_vocabulary_survives_creation(tiny_teacher: Path, tmp_path: Path) -> None:
    """Wider than the tokenizer, as published models are: 49,280 rows for 49,152 tokens."""
    config = LlamaConfig.from_pretrained(str(tiny_teacher), vocab_size=49280)
    LlamaForCausalLM(config).save_pretrained(str(tmp_path / "wide"))
    create_student(StudentConfig(model=str(tmp_path / "wide")), tiny_teacher, tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(str(tmp_path / "student"))
    assert student.get_input_embeddings().weight.shape[0] == 49280


def test_a_narrower_vocabulary_grows_and_says_so(tiny_teacher: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(str(tiny_teacher), vocab_size=49000)
    LlamaForCausalLM(config).save_pretrained(str(tmp_path / "narrow"))
    note = create_student(StudentConfig(model=str(tmp_path / "narrow")), tiny_teacher, tmp_path / "student")
    assert "with 152 rows added to its embeddings" in note
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "student")).config.vocab_size == 49152


def test_another_tokenizer_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_teacher, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"Ġthe":', '"?Ġthe":').replace('"Ġof":', '"Ġthe":').replace('"?Ġthe":', '"Ġof":')
    assert swapped != text
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"2 of .* tokens have other ids"):
        create_student(StudentConfig(model=str(other)), tiny_teacher, tmp_path / "student")
