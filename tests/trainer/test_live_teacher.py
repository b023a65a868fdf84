"""The teacher beside the student: whole distributions, inner states, and what must never happen to its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from llmdistill.cache.reader import CacheReader
from llmdistill.config.objectives import AnyObjective, needs_teacher
from llmdistill.config.student import FromTeacherConfig
from llmdistill.export.huggingface import full_weights
from llmdistill.student.creation import create_from_teacher, load_student
from llmdistill.student.trainable import require_trainable
from llmdistill.trainer.checkpoint import latest_checkpoint
from llmdistill.trainer.data import MicroBatch, collate
from llmdistill.trainer.live_teacher import LiveTeacher
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.model import DistillationModule
from llmdistill.trainer.states import StateNeeds
from tests.helpers import SPEC, make_cache
from tests.trainer.run_ranks import job_for, run_ranks

ADAPTER: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)
STRUCTURE = (
    {"type": "hidden_mse"},
    {"type": "hidden_cosine", "layers": "last", "count": 2},
    {"type": "attention_kl"},
    {"type": "attention_mse", "layers": [[1, 3], [2, 2]]},
    {"type": "relation", "heads": 2},
    {"type": "relational_distance", "tokens": 6},
    {"type": "relational_angle", "tokens": 5},
)


def parse(*objectives: dict) -> tuple[AnyObjective, ...]:
    return tuple(ADAPTER.validate_python(objective) for objective in objectives)


def make_module(student: Path, teacher: Path, *objectives: dict, live: bool = False) -> DistillationModule:
    parsed = parse(*objectives)
    needs = StateNeeds.of(parsed)
    loaded = load_student(student, torch.float32, needs.attention_implementation)
    beside = LiveTeacher.load(teacher, torch.float32, SPEC.vocabulary_size, needs)
    return DistillationModule(loaded, SPEC.vocabulary_size, parsed, beside, live)


def dense_logits(folder: Path, batch: MicroBatch) -> torch.Tensor:
    """A model's logits on the supervised rows [R, real vocabulary], the plain way, float64 of a float32 pass."""
    model = load_student(folder, torch.float32)
    logits_BTV = model(batch.token_ids_BT, position_ids=batch.positions_BT, use_cache=False).logits
    return logits_BTV.flatten(0, 1)[batch.row_slots_R, : SPEC.vocabulary_size].double().detach()


@pytest.fixture(scope="module")
def student_folder(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), folder)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    folder = tmp_path_factory.mktemp("cache")
    make_cache(folder)
    return CacheReader(folder)


@pytest.mark.parametrize("objective", STRUCTURE, ids=lambda objective: objective["type"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    tiny_teacher: Path, reader: CacheReader, objective: dict
) -> None:
    mapped = {**objective, "layers": "uniform"}
    module = make_module(tiny_teacher, tiny_teacher, mapped)
    total, values, _ = module(collate(reader, [(0, 1)], 50))
    assert values.abs().max() < 1e-3
    total.backward()
    assert all(parameter.grad is None or parameter.grad.abs().max() < 1e-3 for parameter in module.parameters())
    other = make_module(tiny_teacher, tiny_teacher, mapped)
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    assert other(collate(reader, [(0, 1)], 50))[1].item() > 1e-2


def test_live_logits_are_the_whole_distribution_at_any_temperature(
    tiny_teacher: Path, student_folder: Path, reader: CacheReader
) -> None:
    batch = collate(reader, [(0, 1)], 50)
    objectives = {"type": "forward_kl", "temperature": 2.0}, {"type": "reverse_kl"}
    same = make_module(tiny_teacher, tiny_teacher, *objectives, live=True)
    assert same(batch)[1].abs().max() < 1e-3
    found = make_module(student_folder, tiny_teacher, *objectives, live=True)(batch)[1]
    logits = [dense_logits(folder, batch) for folder in (tiny_teacher, student_folder)]
    p, q = ((side / 2).log_softmax(1) for side in logits)
    forward = 4 * (p.exp() * (p - q)).sum()
    p, q = (side.log_softmax(1) for side in logits)
    reverse = (q.exp() * (q - p)).sum()
    torch.testing.assert_close(found.double(), torch.stack([forward, reverse]), rtol=1e-4, atol=0)


def test_live_logits_know_the_students_ids_and_the_actual_token(
    tiny_teacher: Path, student_folder: Path, reader: CacheReader
) -> None:
    batch = collate(reader, [(0, 1)], 50)
    p, q = (dense_logits(folder, batch).log_softmax(1) for folder in (tiny_teacher, student_folder))
    objectives = (
        {"type": "reverse_kl", "support": "student", "student_top_k": 20},
        {"type": "policy_gradient", "text": "all"},
        {"type": "policy_gradient"},
    )
    found = make_module(student_folder, tiny_teacher, *objectives, live=True)(batch)[1]
    ids = q.topk(20, dim=1).indices
    p_RE, q_RE = (
        torch.cat([kept, (1 - kept.exp().sum(1, keepdim=True)).log()], dim=1)
        for kept in (side.gather(1, ids) for side in (p, q))
    )
    reverse = (q_RE.exp() * (q_RE - p_RE)).sum()
    gap = (q - p).gather(1, batch.actual_ids_R[:, None]).sum()
    # The cache holds nothing that the student wrote.
    torch.testing.assert_close(found.double(), torch.stack([reverse, gap, 0 * gap]), rtol=1e-4, atol=0)


def test_packing_padding_and_splitting_change_no_structure_objective(
    tiny_teacher: Path, student_folder: Path, reader: CacheReader
) -> None:
    module = make_module(student_folder, tiny_teacher, *STRUCTURE)

    def sums(batches: list[list[tuple[int, ...]]], length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        module.zero_grad()
        found = []
        for sequences in batches:
            total, values, _ = module(collate(reader, sequences, length))
            total.backward()
            found.append(values)
        gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
        return torch.stack(found).sum(0), gradients

    expected, expected_gradients = sums([[(0,)], [(1,)], [(2,)]], 20)
    assert expected.min() > 0
    for batches, length in (([[(0, 1, 2), ()]], 80), ([[(2, 0)], [(1,)], [()]], 41)):
        found, gradients = sums(batches, length)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=5e-3, atol=5e-3)


def test_gradient_norms_of_inner_objectives_are_measured(
    tiny_teacher: Path, student_folder: Path, reader: CacheReader
) -> None:
    module = make_module(
        student_folder, tiny_teacher, *STRUCTURE, {"type": "forward_kl"}, {"type": "deep_supervision", "layers": [1]}
    )
    batch = collate(reader, [(0, 1)], 50)
    assert module(batch, 1.0, False)[2].tolist() == [0.0] * 9
    squares = module(batch, 1.0, True)[2]
    assert squares.min() > 0


@pytest.fixture(scope="module")
def wide_student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another width than the teacher's, so that projectors are needed."""
    torch.manual_seed(1)
    config = json.loads((tiny_teacher / "config.json").read_text())
    config.update(hidden_size=96, num_hidden_layers=2, head_dim=32, num_attention_heads=3)
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(LlamaConfig(**config)).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings", [{"zero_stage": 2}, {"zero_stage": 3, "micro_batch_size": 2}], ids=["zero2", "zero3"]
)
def test_projectors_learn_and_are_saved_and_the_teacher_stays(
    tiny_teacher: Path, wide_student: Path, reader: CacheReader, tmp_path: Path, settings: dict
) -> None:  # cases Z9, Z10, Z11, H4
    before = [path.read_bytes() for path in sorted(tiny_teacher.glob("*.safetensors"))]
    make_cache(tmp_path / "cache")
    job = job_for(tmp_path, tmp_path / "cache", wide_student, epochs=2, **settings)
    objectives = parse({"type": "forward_kl"}, {"type": "hidden_mse", "weight": 10.0, "layers": [[2, 4]]})
    assert needs_teacher(objectives)
    live = job.train.model_copy(update={"soft_labels": "live", "eval_steps": 1})
    job = replace(job, objectives=objectives, teacher=tiny_teacher, held_out=0.3, train=live)
    run_ranks(job)
    lines = read_metrics(job.metrics)
    evaluated = {line["step"]: line["eval_forward_kl"] for line in lines if "eval_forward_kl" in line}
    assert list(evaluated) == list(range(1, len(lines) + 1))
    assert evaluated[len(lines)] < evaluated[1]
    assert lines[-1]["hidden_mse"] < lines[0]["hidden_mse"]
    assert [path.read_bytes() for path in sorted(tiny_teacher.glob("*.safetensors"))] == before
    checkpoint = latest_checkpoint(job.checkpoints)
    assert checkpoint is not None
    weights = full_weights(checkpoint, prefix="")
    projectors = {name: weight for name, weight in weights.items() if "projectors" in name}
    assert list(projectors) == ["objectives.structure.projectors.hidden_mse.maps.2_4.weight"]
    weight = next(iter(projectors.values()))
    assert weight.shape == (64, 96)
    assert not torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-4), "it was orthogonal before the first step"
    assert not [name for name in full_weights(checkpoint) if "projector" in name]


def test_softcapped_logits_are_those_of_the_model(reader: CacheReader) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=SPEC.vocabulary_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    student = Gemma2ForCausalLM(config).eval()
    require_trainable(student)
    module = DistillationModule(student, SPEC.vocabulary_size, parse({"type": "sequence_ce"}))
    batch = collate(reader, [(0,)], 20)
    logits = student(batch.token_ids_BT, position_ids=batch.positions_BT).logits[0, batch.row_slots_R]
    assert logits.abs().max() <= 2.0
    expected = torch.nn.functional.cross_entropy(logits, batch.actual_ids_R, reduction="sum")
    total = module(batch)[0]
    torch.testing.assert_close(total, expected)
    gradients = [
        torch.autograd.grad(value, student.model.embed_tokens.weight, retain_graph=True)[0]
        for value in (expected, total)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
