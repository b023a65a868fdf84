from pathlib import Path

import pytest
import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import ForwardKLConfig, SequenceCEConfig
from llmdistill.config.weighting import ScheduleConfig
from llmdistill.student.creation import load_student
from llmdistill.trainer.data import collate
from llmdistill.trainer.loop import make_plan
from llmdistill.trainer.model import DistillationModule
from tests.cache.conftest import Make
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for

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


def test_without_packing_each_sequence_holds_one_record(tmp_path: Path) -> None:
    make_cache(tmp_path, records=9)
    job = job_for(tmp_path, tmp_path, tmp_path, packing=False, epochs=1)
    plan = make_plan(CacheReader(tmp_path), job)
    batches = [batch for step in range(len(plan)) for batch in plan.micro_batches(step, 0, 1, 1)]
    assert sorted(records for batch in batches for sequence in batch for records in sequence) == list(range(9))
    assert max(len(sequence) for batch in batches for sequence in batch) == 1
