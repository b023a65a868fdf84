"""A compiled student: the same losses, the same names, and checkpoints that continue with and without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llmdistill.config.run import RunConfig
from llmdistill.export.huggingface import full_weights, trained_model
from llmdistill.trainer.checkpoint import checkpoint_folder
from llmdistill.trainer.metrics import read_metrics
from tests.helpers import make_cache
from tests.trainer.conftest import tiny_student
from tests.trainer.run_ranks import job_for, run_each


def test_losses_are_those_without_and_either_continues_the_other(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", records=24)
    student = tiny_student(tmp_path / "init")
    # Inductor takes a minute on a slow machine; graphs, guards and names are the same with this backend.
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    every = {"zero_stage": 2, "epochs": 2, "save_steps": 3, "save_total_limit": 9}
    settings = {
        "plain": every,
        "compiled": {**every, **compiled},
        "plain-resumed": every,
        "compiled-resumed": {**every, **compiled, "gradient_checkpointing": True},
    }
    jobs = {name: job_for(tmp_path / name, tmp_path / "cache", student, **values) for name, values in settings.items()}
    for name, source in (("plain-resumed", "compiled"), ("compiled-resumed", "plain")):
        jobs[name].checkpoints.mkdir(parents=True)
        (jobs[name].checkpoints / "step-00000003").symlink_to(jobs[source].checkpoints / "step-00000003")
    (tmp_path / "errors").mkdir()
    assert run_each(list(jobs.values()), tmp_path / "errors") == [""] * 4
    losses = {name: [line["loss"] for line in read_metrics(job.metrics)] for name, job in jobs.items()}
    assert len(losses["plain"]) == 6
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
    for name in ("plain-resumed", "compiled-resumed"):
        assert losses[name] == pytest.approx(losses["plain"][3:], rel=1e-4)
    last = checkpoint_folder(jobs["compiled"].checkpoints, 6)
    names = set(full_weights(last))
    assert names == set(full_weights(checkpoint_folder(jobs["plain"].checkpoints, 6)))
    assert not any("_orig_mod" in name for name in names)
    trained_model(last, student)


def test_the_blocks_are_compiled(tmp_path: Path) -> None:
    from llmdistill.trainer.loop import make_module
    from tests.helpers import SPEC

    job = job_for(tmp_path, tmp_path / "cache", tiny_student(tmp_path / "init"))
    compiled = dataclasses.replace(job, train=job.train.model_copy(update={"torch_compile": True}))
    for one, expected in ((job, False), (compiled, True)):
        body = make_module(one, SPEC.vocabulary_size).student.base_model
        assert (body._compiled_call_impl is not None) == expected


def test_objectives_that_look_into_the_blocks_are_refused() -> None:
    run = {
        "output": "run",
        "prompts": {"sources": [{"path": "p.jsonl"}]},
        "teacher": {"model": "t"},
        "student": {"from_teacher": {"layers": 2}},
        "train": {"torch_compile": True},
    }
    RunConfig.model_validate({**run, "objectives": [{"type": "forward_kl"}]})
    with pytest.raises(ValueError, match=r"train\.torch_compile: contrastive reads or changes"):
        RunConfig.model_validate({**run, "objectives": [{"type": "forward_kl"}, {"type": "contrastive"}]})
