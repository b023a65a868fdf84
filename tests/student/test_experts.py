"""Mixtures of experts: fewer experts, and a dense student."""

from __future__ import annotations

import pytest
import torch

from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.calibration import measure_importance
from llmdistill.student.creation import cut_from_teacher
from llmdistill.student.families import family_of
from tests.student.tiny import SEQUENCES, tiny_model

MIXTURES = ("qwen3_moe", "deepseek_v2", "deepseek_v3")


@pytest.mark.parametrize("name", MIXTURES)
def test_routing_shares_sum_to_experts_per_token(name: str) -> None:
    teacher = tiny_model(name)
    importance = measure_importance(teacher, family_of(teacher.config), SEQUENCES)
    mixtures = [number for number, shares in enumerate(importance.expert_LE) if len(shares)]
    assert mixtures == ([1, 2, 3, 4, 5] if name == "qwen3_moe" else [2, 3, 4, 5])
    for number in mixtures:
        assert importance.expert_LE[number].sum() == pytest.approx(2)
        assert not len(importance.mlp_LN[number])


def test_experts_that_no_token_needs_can_be_cut_without_a_trace() -> None:
    """Two tokens choose at most four of eight experts in a layer: those stay, and normalised weights stay too."""
    teacher = tiny_model("qwen3_moe")
    student = cut_from_teacher(teacher, FromTeacherConfig(experts=4), [[5, 9]]).student
    assert student.model.layers[1].mlp.gate.weight.shape[0] == student.config.num_experts == 4
    tokens = torch.tensor([[5, 9]])
    torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits, rtol=1e-4, atol=1e-4)


def test_groups_of_experts_stay_equally_large() -> None:
    teacher = tiny_model("deepseek_v3")
    importance = measure_importance(teacher, family_of(teacher.config), SEQUENCES)
    student = cut_from_teacher(teacher, FromTeacherConfig(experts=4), SEQUENCES).student
    for number in (2, 3, 4, 5):
        first, second = (
            importance.expert_LE[number].view(2, 4).sort(stable=True, descending=True).indices[:, :2].sort().values
        )
        kept = torch.cat([first, second + 4])
        old, new = (model.model.layers[number].mlp.gate for model in (teacher, student))
        assert torch.equal(new.weight, old.weight[kept])
        assert torch.equal(new.e_score_correction_bias, old.e_score_correction_bias[kept])
    for experts, fault in ((3, "multiple of 2"), (2, "at least 4"), (9, "at most 8")):
        with pytest.raises(ConfigError, match=fault):
            cut_from_teacher(teacher, FromTeacherConfig(experts=experts), SEQUENCES)


@pytest.mark.parametrize("name", MIXTURES)
def test_dense_student_of_a_router_without_preference_is_the_teacher(name: str) -> None:
    """A router of zeros sends every token to the same experts, equally weighted: then the dense form is exact."""
    teacher = tiny_model(name)
    with torch.no_grad():
        for layer in teacher.model.layers:
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.weight.zero_()
    student = cut_from_teacher(teacher, FromTeacherConfig(dense_experts=2), SEQUENCES).student
    assert type(student).__name__ == ("Qwen3ForCausalLM" if name == "qwen3_moe" else type(teacher).__name__)
    assert not [key for key in student.state_dict() if "expert" in key]
    # Dense layers had 128 neurons: they lose the least important ones, so the teacher must not have used them.
    tokens = torch.tensor([SEQUENCES[0]])
    neurons = student.config.intermediate_size
    assert neurons == (2 * 24 if name == "qwen3_moe" else 3 * 16)
    with torch.no_grad():
        for number, layer in enumerate(teacher.model.layers):
            if not hasattr(layer.mlp, "gate"):
                layer.mlp.down_proj.weight[:, neurons:] = 0
                assert number < 2
    student = cut_from_teacher(teacher, FromTeacherConfig(dense_experts=2), SEQUENCES).student
    torch.testing.assert_close(student(tokens).logits, teacher(tokens).logits, rtol=1e-4, atol=1e-4)


def test_dense_layers_grow_to_the_width_of_the_others_without_a_change() -> None:
    teacher = tiny_model("deepseek_v3", first_k_dense_replace=6)
    teacher_tokens = torch.tensor([SEQUENCES[0]])
    student = cut_from_teacher(teacher, FromTeacherConfig(dense_experts=8), SEQUENCES).student
    assert student.config.intermediate_size == 9 * 16
    assert student.model.layers[0].mlp.up_proj.weight[128:].abs().min() > 0
    torch.testing.assert_close(student(teacher_tokens).logits, teacher(teacher_tokens).logits, rtol=1e-4, atol=1e-4)


def test_dense_can_be_cut_further_and_needs_experts() -> None:
    made = cut_from_teacher(
        tiny_model("qwen3_moe"),
        FromTeacherConfig(dense_experts=4, layers=3, hidden_size=48, intermediate_size=64),
        SEQUENCES,
    )
    assert made.student.config.intermediate_size == 64
    assert made.student.config.hidden_size == 48
    assert made.layers == [0, 2, 5]
    with pytest.raises(ConfigError, match="at most 8"):
        cut_from_teacher(tiny_model("qwen3_moe"), FromTeacherConfig(dense_experts=9), SEQUENCES)
    with pytest.raises(ConfigError, match="the teacher is dense"):
        cut_from_teacher(tiny_model("llama"), FromTeacherConfig(dense_experts=1), SEQUENCES)
