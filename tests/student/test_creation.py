from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.errors import ConfigError
from llmdistill.student.creation import (
    TOKENIZER_FILES,
    create_from_model,
    create_from_teacher,
    keep_layers,
    uniform_layers,
)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(30, 12, [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]), (4, 2, [0, 3]), (4, 4, [0, 1, 2, 3]), (4, 1, [3])],
)
def test_uniform_layers(teacher: int, student: int, expected: list[int]) -> None:
    assert uniform_layers(teacher, student) == expected


def test_more_layers_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="the teacher has 4 layers, 5 are asked for"):
        uniform_layers(4, 5)


def test_student_is_made_of_the_teachers_layers(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_teacher(tiny_teacher, 2, tmp_path)
    teacher = AutoModelForCausalLM.from_pretrained(str(tiny_teacher))
    student, report = AutoModelForCausalLM.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert student.config.num_hidden_layers == 2
    for mine, theirs in ((0, 0), (1, 3)):
        for name, parameter in student.model.layers[mine].named_parameters():
            assert torch.equal(parameter, teacher.model.layers[theirs].get_parameter(name))
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    for name in TOKENIZER_FILES:
        if (tiny_teacher / name).is_file():
            assert (tmp_path / name).read_bytes() == (tiny_teacher / name).read_bytes()
    assert (tmp_path / "tokenizer.json").is_file()


def test_cached_and_uncached_generation_agree_and_the_teacher_is_untouched(tiny_teacher: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(str(tiny_teacher), dtype=torch.float32)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = keep_layers(teacher, [0, 3])
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]
    tokens = torch.tensor([[1, 5, 9, 30]])
    cached, plain = (
        student.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None)
        for use_cache in (True, False)
    )
    assert cached.tolist() == plain.tolist()
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == 4
    assert [layer.self_attn.layer_idx for layer in teacher.model.layers] == [0, 1, 2, 3]


def test_layer_lists_of_the_config_follow(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_window_layers=4,
    )  # fmt: skip
    student = keep_layers(Qwen3ForCausalLM(config), [0, 3])
    assert student.config.num_hidden_layers == len(student.config.layer_types) == 2
    student.save_pretrained(str(tmp_path))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    tokens = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(again(tokens).logits, student.float()(tokens).logits)


def test_student_from_a_model_folder(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_model(str(tiny_teacher), tiny_teacher, tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        create_from_model(str(tmp_path / "absent"), tiny_teacher, tmp_path / "other")
