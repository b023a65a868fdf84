"""Likelihood matching against hand-computed values and autograd through plain logits in float64."""

from __future__ import annotations

import math

import pytest
import torch

from llmdistill.objectives.chunked_head import HeadSums
from llmdistill.objectives.likelihood_matching import likelihood_matching, matched_head, token_logprobs
from tests.objectives.makers import FLOAT

ENDS = torch.tensor([True, False, True, False, False, True, True])
SIZES = [1, 2, 3, 1]


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_one_chunk_by_hand() -> None:
    found = likelihood_matching(torch.tensor([0.25], dtype=FLOAT).log(), torch.tensor([0.5], dtype=FLOAT).log())
    assert float(found) == pytest.approx(binary_kl(0.5, 0.25)) == pytest.approx(0.143841)


def test_the_temperature_takes_roots_and_multiplies() -> None:
    found = likelihood_matching(torch.tensor([0.16], dtype=FLOAT).log(), torch.tensor([0.81], dtype=FLOAT).log(), 2.0)
    assert float(found) == pytest.approx(2 * binary_kl(0.9, 0.4))


def test_large_temperatures_compare_log_likelihoods() -> None:
    student, teacher = torch.tensor([-3.0], dtype=FLOAT), torch.tensor([-2.0], dtype=FLOAT)
    found = likelihood_matching(student, teacher, 1e6)
    assert float(found) == pytest.approx(2 * math.log(2 / 3) - 2 + 3, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agreement_is_zero_with_gradient_zero_and_nothing_is_infinite(temperature: float, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -1e-9, -1e-3, -0.7, -5.0, -60.0, -9000.0], dtype=dtype)
    student = values.clone().requires_grad_()
    found = likelihood_matching(student, values, temperature)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.abs().max() < 1e-4 * temperature
    assert gradient.abs().max() < 1e-3
    other = values.flip(0).clone().requires_grad_()
    found = likelihood_matching(other, values, temperature)
    (gradient,) = torch.autograd.grad(found.sum(), other)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [7, 5], head [13, 5] of which 11 rows are real, tokens [7], the teacher's chunks [4]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(7, 5, dtype=FLOAT, generator=generator).requires_grad_()
    weight = torch.randn(13, 5, dtype=FLOAT, generator=generator).requires_grad_()
    ids = torch.randint(0, 11, (7,), generator=generator)
    return hidden, weight, ids, -torch.rand(4, dtype=FLOAT, generator=generator) * torch.tensor([1.0, 4.0, 9.0, 1.0])


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The same without chunks of rows, by slices."""
    logprobs = (hidden @ weight[:11].T).log_softmax(dim=1).gather(1, ids.unsqueeze(1))[:, 0]
    total, start = torch.zeros((), dtype=FLOAT), 0
    for size, value in zip(SIZES, teacher.tolist(), strict=True):
        if not math.isnan(value):
            p, q = math.exp(value / temperature), (logprobs[start : start + size].sum() / temperature).exp()
            total = total + temperature * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        start += size
    return total


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("unknown", [False, True])
def test_value_and_gradients_equal_the_plain_form(temperature: float, unknown: bool) -> None:
    hidden, weight, ids, teacher = case()
    if unknown:
        teacher[1] = torch.nan
    sums = matched_head(hidden, weight, ids, ENDS, teacher, temperature, 11, measure_gradients=True)
    expected = plain(hidden, weight, ids, teacher, temperature)
    torch.testing.assert_close(sums.total, expected)
    torch.testing.assert_close(sums.values[0], expected.detach())
    found = torch.autograd.grad(sums.total, (hidden, weight))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (hidden, weight)))
    logits = (hidden @ weight.T).detach().requires_grad_()
    by_logits = torch.autograd.grad(plain(logits, torch.eye(13, dtype=FLOAT), ids, teacher, temperature), logits)[0]
    assert sums.squared_gradients is not None
    torch.testing.assert_close(sums.squared_gradients[0], by_logits.square().sum())


def test_a_student_that_equals_its_teacher_has_value_and_gradient_zero() -> None:
    hidden, weight, ids, _ = case(1)
    own = token_logprobs(hidden, weight[:11], ids)
    chunks = torch.stack([part.sum() for part in own.split(SIZES)])
    sums = matched_head(hidden, weight, ids, ENDS, chunks, 100.0, 11)
    assert float(sums.total.detach()) == pytest.approx(0, abs=1e-9)
    assert torch.autograd.grad(sums.total, hidden)[0].abs().max() < 1e-9


def test_with_equal_tokens_it_is_the_sum_over_tokens() -> None:
    hidden, weight, ids, _ = case(2)
    teacher = -torch.rand(7, dtype=FLOAT, generator=torch.Generator().manual_seed(3))
    sums = matched_head(hidden, weight, ids, torch.ones(7, dtype=torch.bool), teacher, 1.0, 11)
    own = (hidden @ weight[:11].T).log_softmax(dim=1).gather(1, ids.unsqueeze(1))[:, 0]
    by_token = [binary_kl(math.exp(p), math.exp(q)) for p, q in zip(teacher.tolist(), own.tolist(), strict=True)]
    assert float(sums.total.detach()) == pytest.approx(sum(by_token))


def test_weights_of_records_are_those_of_the_chunks_last_rows() -> None:
    hidden, weight, ids, teacher = case(4)

    def value(chunks: torch.Tensor, weights: torch.Tensor | None = None) -> HeadSums:
        return matched_head(hidden, weight, ids, ENDS, chunks, 2.0, 11, row_weights_R=weights)

    first = value(torch.where(torch.arange(4) < 2, teacher, torch.nan)).values
    second = value(torch.where(torch.arange(4) < 2, torch.nan, teacher)).values
    weighted = value(teacher, torch.tensor([2.0, 2, 2, 0.5, 0.5, 0.5, 0.5], dtype=FLOAT)).values
    torch.testing.assert_close(weighted, 2 * first + 0.5 * second)
