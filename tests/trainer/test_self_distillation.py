"""The student as its own teacher: dropout views, intermediate layers, and an earlier state of itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from llmdistill.cache.reader import CacheReader
from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ConfigError
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.trainer.data import collate
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.states import StateNeeds
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for, run_ranks
from tests.trainer.test_live_teacher import dense_logits, parse


@pytest.fixture(scope="module")
def folders(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student, and an earlier one of other depth."""
    folder = tmp_path_factory.mktemp("students")
    for name, layers in (("student", 2), ("earlier", 3)):
        create_from_teacher(tiny_teacher, FromTeacherConfig(layers=layers), folder / name)
    return folder / "student", folder / "earlier"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    folder = tmp_path_factory.mktemp("cache")
    make_cache(folder)
    return CacheReader(folder)


def make_module(student: Path, earlier: Path | None, *objectives: dict) -> DistillationModule:
    past = earlier and LiveTeacher.load(earlier, torch.float32, SPEC.vocabulary_size, StateNeeds())
    loaded = load_student(student, torch.float32)
    return DistillationModule(loaded, SPEC.vocabulary_size, parse(*objectives), earlier=past)


def test_contrastive_tells_the_records_of_a_sequence_apart(folders: tuple[Path, Path], reader: CacheReader) -> None:
    module = make_module(folders[0], None, {"type": "contrastive", "temperature": 0.1, "dropout": 0.2})
    batch = collate(reader, [(0, 1, 2), (3, 4), (5,)], 70)
    views = module.objectives.own.views(module.student, batch, 0.25)
    assert views is not None and not torch.allclose(*views)
    means = [
        [view[b, 20 * n : 20 * (n + 1)].double().mean(0) for b, count in enumerate((3, 2, 1)) for n in range(count)]
        for view in views
    ]
    expected = 0.0
    for members in ((0, 1, 2), (3, 4), (5,)):
        for own in members:
            logits = torch.stack([cosine_similarity(means[0][own], means[1][i], dim=0) for i in members]) / 0.1
            rows = int(reader.row_counts[own])
            expected += rows * float((logits.logsumexp(0) - logits[members.index(own)]).detach())
    found = module(batch, 0.25)[1].item()
    assert found == pytest.approx(expected, rel=1e-4) and found > 0
    assert module(batch, 0.25)[1].item() == found
    assert module(batch, 0.5)[1].item() != found
    assert abs(module(collate(reader, [(5,)], 70))[1].item()) < 1e-5


def test_micro_batches_do_not_change_what_is_contrasted(folders: tuple[Path, Path], reader: CacheReader) -> None:
    module = make_module(folders[0], None, {"type": "contrastive"}, {"type": "forward_kl"})

    def gradients(batches: list[list[tuple[int, ...]]]) -> list[torch.Tensor]:
        module.zero_grad()
        for sequences in batches:
            module(collate(reader, sequences, 70), 0.5)[0].backward()
        return [parameter.grad.clone() for parameter in module.parameters()]

    whole = gradients([[(0, 1, 2), (3, 4), (5,), ()]])
    for other in ([[(0, 1, 2)], [(3, 4)], [(5,)], [()]], [[(5,), (3, 4)], [(), (0, 1, 2)]]):
        for found, expected in zip(gradients(other), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_earlier_student_gives_its_whole_distribution(folders: tuple[Path, Path], reader: CacheReader) -> None:
    student, earlier = folders
    objective = {"type": "self_distillation", "model": str(earlier), "temperature": 2.0}
    batch = collate(reader, [(0, 1)], 50)
    assert abs(make_module(earlier, earlier, objective)(batch)[1].item()) < 1e-3
    module = make_module(student, earlier, objective)
    total, values, squares = module(batch, 1.0, True)
    logits = [dense_logits(folder, batch) for folder in (earlier, student)]
    p, q = ((side / 2).log_softmax(1) for side in logits)
    assert values.item() == pytest.approx(4 * float((p.exp() * (p - q)).sum()), rel=1e-4)
    assert squares.item() == pytest.approx(4 * float((q.exp() - p.exp()).square().sum()), rel=1e-3)
    total.backward()
    names = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert names == {f"student.{name}" for name, _ in module.student.named_parameters()}


def test_another_vocabulary_is_refused(tiny_teacher: Path) -> None:
    with pytest.raises(ConfigError, match="its head knows 49152 tokens, the cache's vocabulary has 50000"):
        LiveTeacher.load(tiny_teacher, torch.float32, 50000, StateNeeds())


def test_stages_and_ranks_do_not_change_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", records=9)
    objectives = parse(
        {"type": "forward_kl"},
        {"type": "contrastive", "weight": 0.1},
        {"type": "self_distillation", "weight": 0.5, "model": str(folders[1])},
        {"type": "deep_supervision", "weight": 0.1, "layers": [1]},
    )
    losses = []
    for name, settings in (("one", {"workers": 1, "micro_batch_size": 2, "zero_stage": 0}), ("two", {"zero_stage": 3})):
        job = job_for(tmp_path / name, tmp_path / "cache", folders[0], epochs=2, **settings)
        run_ranks(replace(job, objectives=objectives))
        losses.append([[line[one.type] for one in objectives] for line in read_metrics(job.metrics)])
    assert len(losses[0]) > 2
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-4)


def test_the_average_of_the_weights_is_a_teacher_at_any_stage_and_after_a_restart(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_cache(tmp_path / "cache", records=16)
    objectives = parse({"type": "forward_kl"}, {"type": "self_distillation", "model": "ema"})
    losses = []
    for stage in (2, 3):
        settings = {"zero_stage": stage, "ema_decay": 0.5, "save_steps": 2, "save_total_limit": 9}
        job = job_for(tmp_path / str(stage), tmp_path / "cache", folders[0], epochs=2, **settings)
        job = replace(job, objectives=objectives)
        run_ranks(job)
        calm = [line["self_distillation"] for line in read_metrics(job.metrics)]
        assert len(calm) > 3
        assert abs(calm[0]) < 1e-4 < calm[1]
        losses.append(calm)
    for later in sorted(job.checkpoints.glob("step-*"))[1:]:
        shutil.rmtree(later)
    run_ranks(job)
    losses.append([line["self_distillation"] for line in read_metrics(job.metrics)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.tensor(losses[2]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)
