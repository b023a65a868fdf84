import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import create_from_model, create_from_teacher, load_student
from llmdistill.student.cutting import keep_layers
from llmdistill.student.folder import TOKENIZER_FILES, generation_config
from llmdistill.student.layer_config import keep_layers_in_config
from llmdistill.student.packing import forward_packed
from llmdistill.student.trainable import require_trainable
from tests.student.tiny import SEQUENCES, TINY, tiny_model


def test_student_is_made_of_the_teachers_layers(tiny_teacher: Path, tmp_path: Path) -> None:
    note = create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path)
    assert note.startswith("the student keeps layers 0, 3 of the teacher; ")
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


def test_e2_cached_and_uncached_generation_agree_and_the_teacher_is_untouched(tiny_teacher: Path) -> None:
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


def test_e1_layer_lists_of_the_config_follow(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_window_layers=4,
    )  # fmt: skip
    student = keep_layers(Qwen3ForCausalLM(config), [0, 3])
    assert student.config.num_hidden_layers == len(student.config.layer_types) == 2
    assert student.config.max_window_layers <= 2
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]
    student.save_pretrained(str(tmp_path))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    tokens = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(again(tokens).logits, student.float()(tokens).logits)


def test_student_from_a_model_folder(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_model(str(tiny_teacher), tiny_teacher, tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        create_from_model(str(tmp_path / "absent"), tiny_teacher, tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"layer_types": ["a", "b", "c", "d"]}, {"layer_types": ["b", "d"]}),
        ({"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 0]}),
        (
            {"eos_token_id": [1, 2, 3, 4], "architectures": ["A"]},
            {"eos_token_id": [1, 2, 3, 4], "architectures": ["A"]},
        ),
        ({"max_window_layers": 28, "first_k_dense_replace": 2}, {"max_window_layers": 2, "first_k_dense_replace": 1}),
        ({"num_kv_shared_layers": 2}, {"num_kv_shared_layers": 1}),
        ({"decoder_sparse_step": 2, "mlp_only_layers": []}, {"decoder_sparse_step": 1, "mlp_only_layers": []}),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 3]}, {"decoder_sparse_step": 1, "mlp_only_layers": [1]}),
        ({"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 0}),
    ],
)
def test_e1_every_key_that_follows_the_layers(values: dict, expected: dict) -> None:
    assert keep_layers_in_config(values, [1, 3], 4) == expected


def write_generation(folder: Path, teacher: Path, **settings: object) -> Path:
    shutil.copytree(teacher, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_e7_generation_config_has_every_end_token_and_can_be_saved(tiny_teacher: Path, tmp_path: Path) -> None:
    """Published settings that newer versions refuse to write: sampling values without do_sample, a length of 20."""
    folder = write_generation(
        tmp_path / "teacher", tiny_teacher, eos_token_id=[5, 7], temperature=0.6, top_p=0.9, max_length=20
    )
    config = generation_config(folder)
    assert config.eos_token_id == [2, 5, 7]  # 2 is the tokenizer's and the config's, and ends every training record
    assert config.do_sample is True
    assert config.max_length is None
    config.save_pretrained(str(tmp_path))
    create_from_teacher(folder, FromTeacherConfig(layers=1), tmp_path / "student")
    saved = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 5, 7]
    assert "max_length" not in saved


def test_e6_the_chat_template_gives_the_same_ids(tiny_teacher: Path, tmp_path: Path) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=1), tmp_path)
    (tmp_path / "merges.txt").write_text("a b")  # whatever lay there
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    mine, theirs = (AutoTokenizer.from_pretrained(str(folder)) for folder in (tmp_path, tiny_teacher))
    assert mine.chat_template == theirs.chat_template
    assert mine.apply_chat_template(messages, return_dict=False) == theirs.apply_chat_template(
        messages, return_dict=False
    )


@pytest.mark.parametrize("name", TINY)
def test_packed_records_do_not_see_each_other(name: str) -> None:
    model = tiny_model(name)
    first, second = SEQUENCES[0][:7], SEQUENCES[1][:9]
    tokens = torch.tensor([first + second + [0] * 4, second + first + [0] * 4])
    lengths = ((7, 9, 4), (9, 7, 4))
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    packed = forward_packed(model, tokens, positions).final_BTD
    for record, found in ((first, packed[0, :7]), (second, packed[0, 7:16]), (second, packed[1, :9])):
        alone = model.base_model(torch.tensor([record]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_student_whose_logits_are_more_than_its_head_is_refused() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32}
    phi = PhiForCausalLM(PhiConfig(**sizes, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    torch.nn.init.normal_(phi.lm_head.bias)
    with pytest.raises(ConfigError, match="logits of PhiForCausalLM are not its output embeddings times"):
        require_trainable(phi)
    require_trainable(tiny_model("gemma2", final_logit_softcapping=0.5))
    require_trainable(tiny_model("gemma2", final_logit_softcapping=None))
    blind = BloomForCausalLM(BloomConfig(**sizes, n_layer=2, n_head=2))
    require_trainable(blind)
    blind.config.model_type = "a family without positions"
    with pytest.raises(ConfigError, match="see each other in BloomForCausalLM"):
        require_trainable(blind)


def test_rounding_of_a_deep_model_is_no_leak(teacher_folder: Path) -> None:
    """In bfloat16 a row of the real teacher moves by more than its own size with the shape of the batch."""
    require_trainable(load_student(teacher_folder, torch.bfloat16))


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_precision_is_as_asked(tiny_teacher: Path, tmp_path: Path, dtype: str) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=1), tmp_path, dtype=dtype)
    student = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype="auto")
    assert student.dtype == (torch.bfloat16 if dtype == "auto" else getattr(torch, dtype))
