import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmdistill.preflight.check_models import check_context, check_student, check_tensor_parallel, check_weights
from llmdistill.preflight.facts import WeightFile
from llmdistill.preflight.weight_files import fault, weight_files
from tests.preflight.makers import make_config, make_facts, make_model


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "level"),
    [(64, 8, 1, "ok"), (64, 8, 8, "ok"), (64, 8, 16, "warning"), (9, 3, 2, "error"), (12, 8, 3, "error")],
)
def test_heads_decide_the_tensor_parallel_size(heads: int, kv_heads: int, size: int, level: str) -> None:
    facts = make_facts(
        teacher=make_model(num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=64 * 3)
    )
    (found,) = check_tensor_parallel(make_config(teacher={"tensor_parallel": size}), facts)
    assert found.level == level
    assert str(size) in found.what
    if level == "error":
        assert found.exit_status == 2
        assert "use one of 1" in found.fix


def test_the_possible_sizes_are_named() -> None:
    facts = make_facts(teacher=make_model(num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536))
    (found,) = check_tensor_parallel(make_config(teacher={"tensor_parallel": 2}), facts)
    assert "9 attention heads are not a multiple of 2" in found.what
    assert found.fix == "use one of 1, 3"


def test_more_positions_than_the_teacher_has_are_refused() -> None:
    found = check_context(make_config(teacher={"max_model_len": 5000}), make_facts())
    assert [item.level for item in found] == ["error", "ok"]
    assert "4,096" in found[0].what


def test_case_e5_shapes_that_cannot_work() -> None:
    """Hidden 30 with 4 heads, and 6 heads with 4 KV heads: transformers accepts both."""
    (found,) = check_student(
        make_config(), make_facts(student=make_model(hidden_size=30, num_attention_heads=4, num_key_value_heads=4))
    )
    assert (found.level, found.exit_status) == ("error", 2)
    assert "hidden size 30 is not a multiple of its 4 heads" in found.what
    (found,) = check_student(
        make_config(), make_facts(student=make_model(hidden_size=60, num_attention_heads=6, num_key_value_heads=4))
    )
    assert "6 attention heads are not a multiple of 4 KV heads" in found.what
    assert "1 or 2 or 3 or 6" in found.fix
    stated = make_model(hidden_size=30, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    assert check_student(make_config(), make_facts(student=stated))[0].level == "ok"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(64, 8)}, str(path))
    return path


def test_case_t8_pointer_and_cut_file_are_named(whole: Path) -> None:
    assert fault(whole) == ""
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert fault(whole) == f"is cut or too long: expected {len(content)} bytes, found {len(content) // 2}"
    for damaged, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        (b"", "has 0 bytes"),
        (content[:20], "cut"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"x" * 16, "cannot be read"),
    ):
        whole.write_bytes(damaged)
        assert words in fault(whole)
    teacher = dataclasses.replace(make_model(), weights=weight_files(whole.parent))
    found = check_weights(make_config(), make_facts(teacher=teacher))
    assert [item.level for item in found] == ["error", "ok"]
    assert "teacher: model.safetensors" in found[0].what


def test_weights_that_are_not_there() -> None:
    """An error where nobody will fetch them, and a word where the run does."""
    for local, level in ((True, "error"), (False, "warning")):
        teacher = dataclasses.replace(make_model(), weights=(), local=local)
        assert check_weights(make_config(), make_facts(teacher=teacher))[0].level == level
    pickled = dataclasses.replace(make_model(), weights=(WeightFile("pytorch_model.bin", 9),))
    found = check_weights(make_config(), make_facts(teacher=pickled, student=pickled))
    assert [item.level for item in found] == ["error", "ok"]


def test_parts_that_the_index_names_must_be_there(whole: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (whole.parent / "model.safetensors.index.json").write_text(json.dumps(index))
    missing = weight_files(whole.parent)[-1]
    assert missing.name == "model-2.safetensors"
    assert "not there" in missing.fault
