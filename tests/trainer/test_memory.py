import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from llmdistill.trainer.memory import STAGES, activation_bytes, model_state_bytes

BILLION = 10**9


def test_stages_are_those_of_deepspeeds_estimators() -> None:
    assert model_state_bytes(BILLION, BILLION // 10, 2, 8) == 2 * BILLION + 18 * BILLION // 8
    assert model_state_bytes(BILLION, BILLION // 10, 3, 8) == 4 * BILLION // 10 + 18 * BILLION // 8
    assert model_state_bytes(BILLION, BILLION // 10, 0, 8) == 20 * BILLION
    two = estimate_zero2_model_states_mem_needs(BILLION, 8, 1, cpu_offload=False)[1]
    three = estimate_zero3_model_states_mem_needs(
        BILLION, BILLION // 10, 8, 1, cpu_offload=False, cpu_offload_params=False
    )[1]
    assert [model_state_bytes(BILLION, BILLION // 10, stage, 8) for stage in (1, 2, 3)] == [two, two, three]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_more_sharding_never_takes_more_and_one_gpu_gains_nothing(precision: str) -> None:
    many = [model_state_bytes(BILLION, 10**6, stage, 64, precision) for stage in STAGES]
    assert many == sorted(many, reverse=True)
    assert many[3] < many[0] / 50
    single = [model_state_bytes(BILLION, 0, stage, 1, precision) for stage in (0, 1, 2)]
    assert len(set(single)) == 1


@pytest.mark.parametrize(("precision", "item"), [("bf16", 2), ("fp32", 4)])
def test_weights_that_are_not_trained_have_neither_gradient_nor_state(precision: str, item: int) -> None:
    for stage in STAGES:
        adapters = model_state_bytes(10**7, 10**6, stage, 8, precision)
        beside = item * BILLION // (8 if stage == 3 else 1)
        assert model_state_bytes(10**7, 10**6, stage, 8, precision, frozen=BILLION) == adapters + beside


def test_activations_grow_with_tokens_and_layers() -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 256}
    # A plain feed-forward part of 4 · hidden would take the 34 bytes of the source; a gated one half of its 19 more.
    assert activation_bytes(shape, 10) == 10 * 2 * 64 * 43.5
