"""Records that the student wrote beside records that the teacher wrote, from the cache to the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import ForwardKLConfig, PolicyGradientConfig
from llmdistill.student.creation import load_student
from llmdistill.trainer.data import collate
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.model import DistillationModule
from tests.helpers import SPEC, make_cache
from tests.trainer.conftest import Trained, tiny_student


def test_an_objective_sees_the_records_of_its_text(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", by_student=6)
    reader = CacheReader(tmp_path / "cache")
    student = load_student(tiny_student(tmp_path / "student"), torch.float32)
    everything = range(len(reader))
    by_student = [n for n in everything if reader.read(n).source == "student:7"]
    by_teacher = [n for n in everything if n not in by_student]

    def value(text: str, records: list[int]) -> torch.Tensor:
        objective = ForwardKLConfig(type="forward_kl", text=text)
        module = DistillationModule(student, SPEC.vocabulary_size, (objective,))
        return module(collate(reader, [tuple(records)], 20 * len(records)))[1][0]

    for text, records in (("student", by_student), ("teacher", by_teacher)):
        assert len(records) == 6
        torch.testing.assert_close(value(text, list(everything)), value("all", records))
    assert value("student", by_teacher) == 0.0


def test_a_type_that_stands_twice_has_two_curves(trained: Trained) -> None:
    job = trained.jobs["texts"]
    assert trained.errors["texts"] == ""
    lines = read_metrics(job.metrics)
    weights = {
        "skew_forward_kl_teacher": 1.0,
        "skew_reverse_kl_student": 0.5,
        "sequence_ce_teacher": 0.1,
        "sequence_ce_student": 0.2,
    }
    for line in lines:
        assert "sequence_ce" not in line
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), rel=1e-4)
    for name in weights:
        assert max(line[name] for line in lines) > 0


def test_packing_changes_no_policy_gradient(tmp_path: Path) -> None:
    """A row answers for later ones of its record, and not for those of its neighbours in the packed sequence."""
    make_cache(tmp_path / "cache", records=3, by_student=3)
    reader = CacheReader(tmp_path / "cache")
    objective = PolicyGradientConfig(type="policy_gradient", discount=0.9)
    student = load_student(tiny_student(tmp_path / "student"), torch.float32)
    module = DistillationModule(student, SPEC.vocabulary_size, (objective,))

    def run(batches: list[list[tuple[int, ...]]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        module.zero_grad()
        total = torch.stack([module(collate(reader, sequences, length))[0] for sequences in batches]).sum()
        total.backward()
        return total.detach(), torch.cat([parameter.grad.flatten() for parameter in module.parameters()])

    alone, gradient = run([[(0,)], [(1,)], [(2,)]], 20)
    for batches, length in (([[(0, 1, 2)]], 60), ([[(2, 0), (1,)], [()]], 41)):
        total, found = run(batches, length)
        torch.testing.assert_close(total, alone, rtol=1e-4, atol=0)
        assert (found - gradient).norm() < 1e-3 * gradient.norm()

    expected = torch.zeros(())
    for number in range(3):
        record = reader.read(number)
        slots = record.supervised_N.nonzero()[:, 0] - 1
        logits = student(record.token_ids_N[None], use_cache=False).logits[0, slots, : SPEC.vocabulary_size]
        log_q = logits.log_softmax(1).gather(1, record.token_ids_N[slots + 1][:, None])[:, 0]
        gaps = (record.rows.actual_logprobs_R - log_q).tolist()
        advantages = [sum(0.9 ** (s - t) * gaps[s] for s in range(t, len(gaps))) for t in range(len(gaps))]
        expected = expected - (torch.tensor(advantages) * log_q).sum()
    module.zero_grad()
    expected.backward()
    plain = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert (plain - gradient).norm() < 1e-3 * gradient.norm()
