from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import ForwardKLConfig, SequenceCEConfig
from llmdistill.config.student import FromTeacherConfig
from llmdistill.config.weighting import ScheduleConfig
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.trainer.checkpoint import latest_checkpoint, read_state
from llmdistill.trainer.data import collate
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.states import StateNeeds
from tests.cache.conftest import Make
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for, run_ranks

KL, CE = ForwardKLConfig(type="forward_kl", weight=0.9), SequenceCEConfig(type="sequence_ce", weight=0.1)


def gradients(
    module: DistillationModule, reader: CacheReader, batches: list[list[tuple[int, ...]]], length: int
) -> tuple[float, dict]:
    module.zero_grad()
    total = 0.0
    for sequences in batches:
        value, *_ = module(collate(reader, sequences, length))
        (value / 100).backward()
        total += value.item()
    return total, {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def test_packing_padding_and_splitting_change_nothing(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path)
    reader = CacheReader(tmp_path)
    module = DistillationModule(load_student(tiny_teacher, torch.float32), SPEC.vocabulary_size, (KL, CE))
    alone, alone_gradients = gradients(module, reader, [[(0,)], [(1,)], [(2,)]], 20)
    for batches, length in (
        ([[(0, 1, 2)]], 60),
        ([[(0, 1, 2), ()]], 80),
        ([[(2, 0)], [(1,)], [()]], 41),
        ([[(0,), (1,), (2,)]], 20),
    ):
        total, found = gradients(module, reader, batches, length)
        assert abs(total - alone) < 1e-3 * alone
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, alone_gradients[name], rtol=1e-3, atol=1e-5)


def test_each_objective_reaches_the_gradient(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path)
    reader = CacheReader(tmp_path)
    student = load_student(tiny_teacher, torch.float32)
    found = [
        gradients(DistillationModule(student, SPEC.vocabulary_size, objectives), reader, [[(0,)]], 20)[1]
        for objectives in ((CE,), (KL, CE), (KL,))
    ]
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name] + found[2][name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(found[0][name], found[2][name])


def test_rows_of_the_head_beyond_the_vocabulary_do_not_exist(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path)
    module = DistillationModule(load_student(tiny_teacher, torch.float32), SPEC.vocabulary_size, (KL, CE))
    batch = collate(CacheReader(tmp_path), [(0,)], 20)
    before, *_ = module(batch)
    with torch.no_grad():
        module.head_weight()[SPEC.vocabulary_size :] += 10
    after, *_ = module(batch)
    assert torch.equal(before, after)


def test_schedules_follow_the_progress_and_gradients_are_measured(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path)
    fading = CE.model_copy(update={"weight": 1.0, "schedule": ScheduleConfig(start=1.0, end=0.0)})
    module = DistillationModule(load_student(tiny_teacher, torch.float32), SPEC.vocabulary_size, (KL, fading))
    batch = collate(CacheReader(tmp_path), [(0,)], 20)
    for progress, weight in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        total, values, squares = module(batch, progress, True)
        torch.testing.assert_close(total, 0.9 * values[0] + weight * values[1])
        assert squares.min() > 0
    assert module(batch, 0.0)[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["sampled", "head_tail"])
def test_drawn_entries_give_the_cross_entropy_less_the_entropy(tiny_teacher: Path, tmp_path: Path, kind: str) -> None:
    spec = Make.spec(kind, vocabulary_size=SPEC.vocabulary_size, logprobs="f16")
    records = Make.records(spec, 3)
    Make.cache(tmp_path, records, spec)
    reader = CacheReader(tmp_path)
    module = DistillationModule(load_student(tiny_teacher, torch.float32), spec.vocabulary_size, (KL,)).eval()
    total, (value,), _ = module(collate(reader, [(0,), (1,), (2,)], 64))
    expected = 0.0
    for number in range(3):
        record = reader.read(number)
        slots = record.supervised_N.nonzero()[:, 0] - 1
        logits = module.student(record.token_ids_N[None], use_cache=False).logits[0, slots, : spec.vocabulary_size]
        student = logits.log_softmax(dim=1)
        ids, logprobs = record.rows.decode(spec.vocabulary_size)
        expected += -(logprobs.exp() * student.gather(1, ids)).sum() - record.rows.entropy_R.sum()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(total, 0.9 * expected, rtol=1e-4, atol=1e-3)


def test_temperatures_follow_their_schedule(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path)
    batch = collate(CacheReader(tmp_path), [(0,)], 20)
    teacher = LiveTeacher.load(tiny_teacher, torch.float32, SPEC.vocabulary_size, StateNeeds())
    student = load_student(tiny_teacher, torch.float32)
    with torch.no_grad():
        student.lm_head.weight.mul_(1.3)

    def value(progress: float, **settings: object) -> float:
        objective = ForwardKLConfig.model_validate({"type": "forward_kl", **settings})
        module = DistillationModule(student, SPEC.vocabulary_size, (objective,), teacher, live_logits=True)
        return module(batch, progress)[0].item()

    moving = {"temperature": 2.0, "temperature_schedule": {"start": 2.0, "end": 0.5}}
    assert value(0.0, **moving) == pytest.approx(value(0.0, temperature=4.0))
    assert value(0.5, **moving) == pytest.approx(value(0.0, temperature=2.5))
    assert value(1.0, **moving) == pytest.approx(value(0.0, temperature=1.0))


def test_balanced_objectives_pull_alike_and_the_factors_are_kept(tiny_teacher: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", records=24)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "init")
    job = job_for(tmp_path, tmp_path / "cache", tmp_path / "init", workers=1, epochs=4, balance_objectives=True)
    job = replace(job, objectives=(KL.model_copy(update={"weight": 1.0}), CE.model_copy(update={"weight": 1.0})))
    run_ranks(job)
    lines = read_metrics(job.metrics)
    assert "forward_kl_balance" not in lines[9]
    norms = lines[9]["forward_kl_grad_norm"], lines[9]["sequence_ce_grad_norm"]
    factors = lines[10]["forward_kl_balance"], lines[10]["sequence_ce_balance"]
    assert norms[0] * factors[0] == pytest.approx(norms[1] * factors[1], rel=1e-4)
    assert sum(norms) == pytest.approx(sum(n * f for n, f in zip(norms, factors, strict=True)), rel=1e-4)
    loss = sum(lines[10][name] * factor for name, factor in zip(("forward_kl", "sequence_ce"), factors, strict=True))
    assert lines[10]["loss"] == pytest.approx(loss, rel=1e-4)
    state = read_state(latest_checkpoint(job.checkpoints))
    assert state.factors["forward_kl"] == pytest.approx(factors[0], rel=1e-4)
