"""Each shipped recipe's student, scaled down: the same rule on a tiny teacher of the same family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmdistill.config.load import load_config
from llmdistill.config.student import FromTeacherConfig
from llmdistill.student.creation import create_student, cut_from_teacher
from llmdistill.student.folder import copy_tokenizer
from tests.student.tiny import SEQUENCES, tiny_model

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
FAMILIES = {
    "qwen3_8b_to_0.6b": "qwen3", "qwen3_32b_to_1.7b": "qwen3", "qwen3_30b_a3b_to_dense_1.7b": "qwen3_moe",
    "llama_3.1_8b_to_1b": "llama", "llama_3.1_8b_to_4b_pruned": "llama", "reasoning_traces_to_qwen_1.5b": "qwen2",
    "gpt2_xl_to_gpt2": "gpt2", "bloom_7b1_to_560m": "bloom", "regenerate_cache": "llama",
}  # fmt: skip
TWINS: dict[str, dict[str, Any]] = {  # of a teacher of 6 layers, hidden 64, 128 neurons, 8 experts
    "qwen3_30b_a3b_to_dense_1.7b": {"dense_experts": 4, "parameters": 120_000},
    "llama_3.1_8b_to_4b_pruned": {"hidden_size": 48, "intermediate_size": 80},
    "regenerate_cache": {"layers": 3},
}


def test_every_recipe_has_a_twin() -> None:
    assert {path.name.removesuffix(".yaml") for path in RECIPES.glob("*.yaml")} == set(FAMILIES)


@pytest.mark.parametrize("recipe", FAMILIES)
def test_the_student_of_a_recipe_can_be_made(recipe: str, tiny_teacher: Path, tmp_path: Path) -> None:
    student = load_config(RECIPES / f"{recipe}.yaml").student
    family = FAMILIES[recipe]
    if student.from_teacher is not None:
        twin = FromTeacherConfig(**TWINS[recipe])
        assert student.from_teacher.model_fields_set - {"calibration"} == twin.model_fields_set
        made = cut_from_teacher(tiny_model(family), twin, SEQUENCES).student
        if twin.parameters is not None:
            assert sum(p.numel() for p in made.parameters()) == pytest.approx(twin.parameters, rel=0.05)
        return
    config = AutoConfig.for_model(
        **{
            "model_type": family, "vocab_size": 49152, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16,
            "eos_token_id": 2,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path / "published"))
    copy_tokenizer(tiny_teacher, tmp_path / "published")
    wanted = student.model_copy(update={"model": str(tmp_path / "published")})
    assert "parameters" in create_student(wanted, tiny_teacher, tmp_path / "student")
