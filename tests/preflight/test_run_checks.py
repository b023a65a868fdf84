from pathlib import Path

import pytest

from llmdistill.errors import ConfigError
from llmdistill.preflight.check_run import check_batch, check_output
from llmdistill.preflight.facts import OutputFacts
from llmdistill.preflight.machine import output_facts
from llmdistill.preflight.volume import Volume
from tests.preflight.makers import make_config, make_facts


def test_case_z2_batch_sizes_that_do_not_divide() -> None:
    """256 of 7 workers with micro-batches of 2: all numbers and a fix, before any model is loaded."""
    with pytest.raises(ConfigError) as refused:
        make_config(train={"tokens_per_step": 256, "workers": 7, "micro_batch_size": 2, "sequence_length": 16})
    for part in ("tokens_per_step 256", "workers 7", "micro_batch_size 2", "sequence_length 16 = 224"):
        assert part in str(refused.value)
    assert refused.value.fix == "use 224 or 448"


def test_batch_sizes_that_divide_are_shown() -> None:
    config = make_config(train={"tokens_per_step": 448, "workers": 7, "micro_batch_size": 2, "sequence_length": 16})
    (found,) = check_batch(config, make_facts(), Volume(10, 4480, 4480, 4480))
    assert found.level == "ok"
    assert "448 = workers 7 × micro_batch_size 2 × sequence_length 16 × accumulation 2" in found.what
    assert "up to 18 steps" in found.what
    (found,) = check_batch(config, make_facts(), Volume(1, 10, 10, 10))
    assert found.level == "warning"
    assert "224" in found.fix


def holding(config, shards: int = 3, checkpoints: int = 0):
    return make_facts(output=OutputFacts("/runs/made", config.model_dump(mode="json"), shards, checkpoints))


def test_another_capture_in_the_folder_is_a_conflict() -> None:
    facts = holding(make_config())
    (found,) = check_output(make_config(capture={"top_k": 8}), facts)
    assert (found.level, found.exit_status) == ("error", 2)
    assert "capture.top_k was 64 and is 8" in found.what
    assert check_output(make_config(), facts)[0].level == "ok"


def test_other_samples_or_shard_compression_continue() -> None:
    (found,) = check_output(make_config(capture={"compression": "zstd"}), holding(make_config()))
    assert found.level == "warning"


@pytest.mark.parametrize(("checkpoints", "level"), [(0, "warning"), (2, "error")])
def test_another_training_is_a_conflict_where_there_are_checkpoints(checkpoints: int, level: str) -> None:
    (found,) = check_output(make_config(train={"lr": 1e-5}), holding(make_config(), 3, checkpoints))
    assert found.level == level
    assert "train.lr was 0.0003 and is 1e-05" in found.what


def test_a_file_in_the_way_is_found(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    found = output_facts(tmp_path / "run", tmp_path / "c.json", tmp_path / "shards", tmp_path / "checkpoints")
    assert "is a file" in found.fault
    assert check_output(make_config(), make_facts(output=found))[0].exit_status == 2
