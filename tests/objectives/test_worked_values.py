"""Hand-computed values; nothing here is compared with the formula that it tests."""

import math

import pytest
import torch

from llmdistill.objectives.chunked_head import chunked_row_sums
from llmdistill.objectives.divergence import forward_kl
from llmdistill.objectives.targets import TeacherTargets, student_logprobs
from llmdistill.objectives.total import row_sums, weighted_total


def targets(p: list[list[float]], k: int, actual: list[int] | None = None) -> TeacherTargets:
    p_RV = torch.tensor(p, dtype=torch.float64)
    kept, ids = p_RV.topk(k, dim=1)
    actual_R = torch.tensor(actual or [0] * len(p))
    return TeacherTargets(actual_R, ids, kept.log(), kept.sum(dim=1))


def logits(q: list[list[float]]) -> torch.Tensor:
    return torch.tensor(q, dtype=torch.float64).log() + 3.7  # a constant does not matter


@pytest.mark.parametrize(
    ("p", "q", "k", "expected"),
    [
        ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], 3, 0.0851228),
        ([0.4, 0.3, 0.3], [0.6, 0.2, 0.2], 1, 0.0810930),  # without the tail it would be -0.162186
        ([0.6, 0.3, 0.1], [0.6, 0.3, 0.1], 2, 0.0),  # one side renormalised would give 0.1053605
    ],
)
def test_forward_kl(p: list[float], q: list[float], k: int, expected: float) -> None:
    teacher = targets([p], k)
    assert forward_kl(student_logprobs(logits([q]), teacher), teacher).item() == pytest.approx(expected, abs=5e-8)


def test_equal_distributions_have_no_gradient() -> None:
    teacher = targets([[0.6, 0.3, 0.1]], 2)
    student = logits([[0.6, 0.3, 0.1]]).requires_grad_()
    forward_kl(student_logprobs(student, teacher), teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_temperature_one_value_and_gradient_norm() -> None:
    p = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64).softmax(0).tolist()
    student = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = targets([p], 3)
    value = forward_kl(student_logprobs(student, teacher), teacher).sum()
    value.backward()
    assert student.grad is not None
    assert value.item() == pytest.approx(1.1504208, abs=5e-8)
    assert student.grad.norm().item() == pytest.approx(0.81347, abs=5e-6)


def test_the_denominator_is_the_global_step() -> None:
    """One micro-batch of 1 token with loss 4 and one of 3 tokens with loss 1 each: 1.75, and not 2.5."""
    teacher = targets([[1.0 - 1e-9, 1e-9]], 1)

    def sums(losses: list[float]) -> torch.Tensor:
        rows = [[math.exp(-loss), 1 - math.exp(-loss)] for loss in losses]
        everyone = TeacherTargets(
            *(getattr(teacher, n).expand(len(rows), *getattr(teacher, n).shape[1:]) for n in vars(teacher))
        )
        return row_sums(logits(rows), everyone, ["sequence_ce"])

    parts = [weighted_total(sums(losses), {"sequence_ce": 1.0}, 4) for losses in ([4.0], [1.0, 1.0, 1.0])]
    assert sum(parts).item() == pytest.approx(1.75)


@pytest.mark.parametrize(("chunk_rows", "group_rows"), [(1, 1), (2, 5), (3, 7), (100, 100)])
def test_chunked_head_equals_the_plain_one(chunk_rows: int, group_rows: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 6, dtype=torch.float64)
    weight = torch.randn(11, 6, dtype=torch.float64)
    teacher = targets(torch.randn(7, 11, dtype=torch.float64).softmax(1).tolist(), 3, actual=[0, 3, 10, 4, 4, 9, 1])
    weights = {"forward_kl": 0.7, "sequence_ce": 0.3}

    def run(fused: bool) -> list[torch.Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            total, sums = chunked_row_sums(h, w, teacher, weights, chunk_rows, group_rows)
        else:
            sums = row_sums(h @ w.T, teacher, list(weights))
            total = weighted_total(sums, weights, 1)
        (total * 0.25).backward()
        assert h.grad is not None
        assert w.grad is not None
        return [total.detach(), sums.detach(), h.grad, w.grad]

    for fused, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)
