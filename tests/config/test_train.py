"""The training section: what it refuses, and the DeepSpeed dictionary that it becomes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmdistill.config.train import TrainConfig
from llmdistill.errors import ConfigError
from llmdistill.trainer.engine import deepspeed_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deepspeed": {"train_batch_size": 256}}, r"train\.deepspeed\.train_batch_size: follows from"),
        ({"deepspeed": {"zero_optimization": {"reduce_bucket_size": "auto"}}}, "zero_optimization.reduce_bucket_size"),
        ({"offload_optimizer": "cpu", "zero_stage": 0}, "needs a train.zero_stage of at least 1"),
        ({"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, "nothing can export"),
        ({"deepspeed": {"checkpoint": {"writer": {"decoupled": True}}}}, "these writers may end later"),
        ({"torch_compile": True, "zero_stage": 3}, "train.torch_compile: ZeRO-3 gathers"),
        ({"torch_compile_mode": "max-autotune"}, "need train.torch_compile"),
        ({"precision": "int8"}, "'bf16', 'fp16' or 'fp32'"),
        ({"load_best_model_at_end": True}, r"train\.load_best_model_at_end: needs train\.eval_steps"),
        ({"early_stopping_patience": 1}, r"train\.early_stopping_patience: needs train\.eval_steps"),
        ({"wait_for_cache": True}, r"train\.wait_for_cache: needs train\.max_steps"),
        (
            {"wait_for_cache": True, "max_steps": 9, "eval_steps": 1, "load_best_model_at_end": True},
            "the held-out records of a cache that grows are not always the same",
        ),
        ({"report_to": ["comet"]}, "'wandb' or 'mlflow'"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:  # case Z13
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(settings)


def test_batch_sizes_that_do_not_divide_name_all_numbers_and_a_fix() -> None:  # case Z2
    with pytest.raises(
        ConfigError, match=r"8192 is not a multiple of workers 7 × micro_batch_size 2 × .* = 14336"
    ) as error:
        TrainConfig(workers=7, micro_batch_size=2)
    assert error.value.fix == "use 14336"


def test_keys_of_deepspeed_win_and_batches_multiply() -> None:
    train = TrainConfig.model_validate(
        {
            "workers": 2,
            "micro_batch_size": 2,
            "offload_optimizer": "cpu",
            "deepspeed": {"zero_optimization": {"stage": 1, "overlap_comm": True}, "wall_clock_breakdown": True},
        }
    )
    found = deepspeed_config(train)
    assert found["train_batch_size"] == 2 * 2 * found["gradient_accumulation_steps"] == 8
    assert found["zero_optimization"]["stage"] == 1
    assert found["zero_optimization"]["overlap_comm"]
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["wall_clock_breakdown"]
    assert found["bf16"] == {"enabled": True}
