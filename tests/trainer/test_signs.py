"""A rank that hangs ends the training, and is named."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from llmdistill.trainer.signs import describe, stall_message
from tests.helpers import make_cache
from tests.trainer.conftest import tiny_student
from tests.trainer.run_ranks import job_for, run_ranks


def block_the_data_of_rank_1(rank: int) -> None:
    """Its fourth step never comes out of the reader."""
    if rank == 1:
        from llmdistill.cache.order import StepPlan

        original = StepPlan.micro_batches

        def blocking(plan, number, *arguments):
            if number >= 3:
                threading.Event().wait()
            return original(plan, number, *arguments)

        StepPlan.micro_batches = blocking


@pytest.mark.timeout(200)
def test_a_rank_that_waits_for_its_data_for_ever_ends_the_run_by_name(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", records=24)
    student = tiny_student(tmp_path / "student")
    job = job_for(tmp_path, tmp_path / "cache", student, zero_stage=2, watchdog_timeout_s=6.0)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="terminated with exit code 1"):
        run_ranks(job, block_the_data_of_rank_1)
    message = stall_message(job.signs)
    assert message is not None
    assert "no sign of life in 6 s" in message
    assert "rank 1 waits for the data of step 4, rank 0 is in forward and backward of step 4" in message
    assert "rank 1 is behind the others" in message
    stacks = [(job.signs / f"rank-{rank}.stacks").read_text() for rank in (0, 1)]
    assert "in blocking" in stacks[1] and "prefetch.py" in stacks[1]
    assert "engine.py" in stacks[0]


def test_ranks_are_listed_by_how_far_they_are(tmp_path: Path) -> None:
    for rank, sign in enumerate([("compute", 8), ("checkpoint", 7), ("data", 8), ("compute", 8)]):
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(sign))
    assert describe(tmp_path, 5, 540).splitlines()[0] == (
        "no sign of life in 540 s (train.watchdog_timeout_s): rank 4 loads models and checkpoint for step 0,"
        " rank 1 writes the checkpoint of step 7, rank 2 waits for the data of step 8, rank 0 is in forward and"
        " backward of step 8, rank 3 is in forward and backward of step 8; rank 4 is behind the others"
    )
