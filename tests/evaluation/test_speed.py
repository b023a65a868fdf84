from pathlib import Path

import pytest

from llmdistill.errors import LLMDistillError
from llmdistill.evaluation.speed import measure_speed


def test_sizes_are_exact_and_memory_is_the_models_own(tiny_teacher: Path) -> None:
    ballast = bytearray(2_000_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])  # resident here, and not in the child
    measured = measure_speed(tiny_teacher, prompt_tokens=8, new_tokens=4)
    weights = tiny_teacher / "model.safetensors"
    assert measured["bytes"] == weights.stat().st_size
    assert measured["bytes"] == pytest.approx(2 * measured["parameters"], rel=0.01)
    assert measured["dtype"] == "bfloat16"
    assert measured["bytes"] < measured["peak_memory_bytes"] < len(ballast)
    assert measured["tokens_per_second"] > 0
    assert measured["seconds_to_first_token"] > 0


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLMDistillError, match="measuring the speed failed"):
        measure_speed(tmp_path, 8, 4)
