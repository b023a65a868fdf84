"""Rows that weigh more than others, by the source of their record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.order import plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import DataError
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.trainer.data import collate, read_ahead
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.source_weights import record_weights, require_sources
from llmdistill.trainer.states import StateNeeds
from tests.helpers import SPEC, make_record
from tests.trainer.run_ranks import job_for, run_each
from tests.trainer.test_live_teacher import STRUCTURE, parse

WEIGHTS = {"math": 3.0, "chat": 0.25}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 records of three sources, of two lengths."""
    folder = tmp_path_factory.mktemp("weighted") / "cache"
    for start, name in ((0, "math"), (8, "chat"), (16, "code")):
        made = [make_record(number, tokens=20 if number % 3 else 14) for number in range(start, start + 8)]
        write_shard(shard_folder(folder), [replace(record, source=name) for record in made], SPEC, "fake-1")
    write_index(folder)
    return folder


def losses(job: TrainJob) -> list[float]:
    return [line["loss"] for line in read_metrics(job.metrics)]


def reference_loss(cache: Path, student: Path, job: TrainJob, weights: dict[str, float]) -> float:
    """Σ weight · value / Σ weight of the first step, in float64, record by record."""
    reader = CacheReader(cache)
    slots = job.train.tokens_per_step // job.train.sequence_length
    plan = plan_steps(
        reader.token_counts, np.arange(len(reader)), job.train.epochs, job.train.seed, job.train.sequence_length, slots
    )
    model = load_student(student, torch.float32).double()
    total = weight_sum = 0.0
    for number in plan.step_records(0).tolist():
        record = reader.read(number)
        supervised = record.supervised_N.nonzero()[:, 0]
        with torch.no_grad():
            logits = model(record.token_ids_N[None], use_cache=False).logits[0, supervised - 1, : SPEC.vocabulary_size]
        q = logits.log_softmax(dim=1)
        ids, logprobs = record.rows.decode(SPEC.vocabulary_size)
        p, kept = logprobs.double(), q.gather(1, ids)
        rest_p = 1 - record.rows.mass_R.double()
        rest_q = 1 - kept.exp().sum(1)
        kl = (p.exp() * (p - kept)).sum(1) + rest_p * (rest_p / rest_q).log()
        ce = -q.gather(1, record.token_ids_N[supervised].unsqueeze(1))[:, 0]
        weight = weights.get(record.source, 1.0)
        total += weight * float((0.9 * kl + 0.1 * ce).sum())
        weight_sum += weight * len(supervised)
    return total / weight_sum


@pytest.mark.timeout(600)
def test_the_loss_is_the_weighted_mean_of_the_global_step(cache: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), student)
    weighted = {"source_weights": WEIGHTS, "epochs": 2, "zero_stage": 2}
    jobs = {
        "plain": job_for(tmp_path / "plain", cache, student, epochs=2, zero_stage=2),
        "ones": job_for(
            tmp_path / "ones", cache, student, epochs=2, zero_stage=2, source_weights={"math": 1, "code": 1}
        ),
        "weighted": job_for(tmp_path / "weighted", cache, student, eval_steps=2, **weighted),
        "wrong": job_for(tmp_path / "wrong", cache, student, source_weights={"maths": 2}),
        "changed": job_for(tmp_path / "weighted", cache, student, **{**weighted, "source_weights": {"math": 2}}),
    }
    jobs["weighted"] = replace(jobs["weighted"], held_out=0.3)
    jobs["changed"] = replace(jobs["changed"], held_out=0.3)
    errors = dict(zip(jobs, run_each(list(jobs.values()), _folder(tmp_path / "errors")), strict=True))
    alone = {
        "weighted": replace(
            job_for(tmp_path / "alone", cache, student, workers=1, eval_steps=2, **weighted), held_out=0.3
        ),
        "all": job_for(tmp_path / "all", cache, student, workers=1, **weighted),
    }
    alone["weighted"] = replace(alone["weighted"], held_out=0.3)
    run_each(list(alone.values()), _folder(tmp_path / "more"))

    assert errors["plain"] == errors["ones"] == errors["weighted"] == ""
    assert "no record is of the source maths; the sources are chat, code, math" in errors["wrong"]
    assert "train.source_weights: the checkpoint has" in errors["changed"]
    assert losses(jobs["ones"]) == losses(jobs["plain"])
    assert losses(alone["weighted"]) == pytest.approx(losses(jobs["weighted"]), rel=1e-4)
    evaluated = [
        [line["eval_loss"] for line in read_metrics(job.metrics) if "eval_loss" in line]
        for job in (alone["weighted"], jobs["weighted"])
    ]
    assert len(evaluated[0]) > 1
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)
    first = losses(alone["all"])[0]
    assert first == pytest.approx(reference_loss(cache, student, alone["all"], WEIGHTS), rel=2e-5)
    assert losses(jobs["plain"])[0] == pytest.approx(reference_loss(cache, student, jobs["plain"], {}), rel=2e-5)
    assert first != pytest.approx(losses(jobs["plain"])[0], rel=1e-3)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_every_rank_divides_by_the_weight_of_the_whole_step(cache: Path) -> None:
    reader = CacheReader(cache)
    weights = record_weights(reader, WEIGHTS)
    assert weights is not None
    plan = plan_steps(reader.token_counts, np.arange(24), 1, 0, 40, 4)
    ranks = [list(read_ahead(reader, plan, 0, rank, 2, 1, 40, weights)) for rank in range(2)]
    for parts in zip(*ranks, strict=True):
        found = sum(float(batch.row_weights_R.sum()) for part in parts for batch in part.micro_batches)
        assert [part.global_weight for part in parts] == pytest.approx([found] * 2)
        assert parts[0].global_weight != parts[0].global_rows
    plain = next(read_ahead(reader, plan, 0, 0, 2, 1, 40, record_weights(reader, {"math": 1.0})))
    assert plain.global_weight == plain.global_rows
    assert plain.micro_batches[0].row_weights_R is None


def test_a_cache_without_names_of_sources_cannot_be_weighted(tmp_path: Path) -> None:
    write_shard(shard_folder(tmp_path), [make_record(1)], SPEC, "fake-1")
    with pytest.raises(DataError, match="its records do not name their sources"):
        require_sources(CacheReader(tmp_path), WEIGHTS, tmp_path)


OWN = ({"type": "contrastive"}, {"type": "deep_supervision", "layers": [1]}, {"type": "forward_kl"})


@pytest.mark.parametrize("live", [False, True], ids=["cache", "live"])
def test_every_objective_weighs_rows(cache: Path, tiny_teacher: Path, tmp_path: Path, live: bool) -> None:
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "student")
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=3), tmp_path / "earlier")
    earlier_objective = {"type": "self_distillation", "model": str(tmp_path / "earlier")}
    objectives = parse(*STRUCTURE, *OWN, earlier_objective)
    needs = StateNeeds.of(objectives)
    student = load_student(tmp_path / "student", torch.float32, needs.attention_implementation)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    teacher = LiveTeacher.load(tiny_teacher, torch.float32, SPEC.vocabulary_size, needs)
    earlier = LiveTeacher.load(tmp_path / "earlier", torch.float32, SPEC.vocabulary_size, StateNeeds())
    module = DistillationModule(student, SPEC.vocabulary_size, objectives, teacher, live, earlier)
    reader = CacheReader(cache)

    def values(first: float, second: float) -> torch.Tensor:
        weights = np.where(reader.source_numbers == 0, first, second)
        members = [np.flatnonzero(reader.source_numbers == number)[:2].tolist() for number in range(2)]
        batch = collate(reader, [(members[0][0], members[1][0]), (members[1][1], members[0][1])], 45, weights)
        torch.manual_seed(0)
        return module(batch, 0.5)[1].double()

    ones, one, other = values(1, 1), values(1, 0), values(0, 1)
    assert (one.abs() > 1e-6).all() and (other.abs() > 1e-6).all()
    torch.testing.assert_close(one + other, ones, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values(2, 5), 2 * one + 5 * other, rtol=1e-4, atol=1e-5)
