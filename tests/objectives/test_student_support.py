"""The reverse KL over the student's own most likely ids, against numpy over the whole vocabulary."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.objectives.total import row_sums, row_values
from tests.objectives.makers import FLOAT, dense, logits_of, random_logits, top_k
from tests.objectives.test_properties import both_logits, quick
from tests.objectives.test_worked_values import term


def probabilities(logits_RV: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    exps = np.exp(logits_RV.detach().numpy() / temperature)
    return exps / exps.sum(axis=1, keepdims=True)


def on_student(k: int, **options: object) -> list:
    return [term("reverse_kl", support="student", student_top_k=k, **options)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_live_teacher_gives_reverse_kl_and_jsd_in_full(temperature: float) -> None:
    teacher, student = random_logits(6, 300, 1), random_logits(6, 300, 2)
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    m = 0.3 * p + 0.7 * q
    expected = [(q * np.log(q / p)).sum(1), 0.3 * (p * np.log(p / m)).sum(1) + 0.7 * (q * np.log(q / m)).sum(1)]
    terms = [term("reverse_kl", temperature=temperature), term("jsd", beta=0.3, temperature=temperature)]
    found = row_values(student, dense(teacher), terms).numpy()
    np.testing.assert_allclose(found, np.stack(expected) * temperature**2, rtol=1e-12)
    # What a cache holds gives less.
    stored = row_values(student, top_k(teacher, 64, temperatures=(2.0,)), terms).numpy()
    assert (stored < found * (1 - 1e-3)).all()


@pytest.mark.parametrize("k", [1, 5, 64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_students_top_k_and_one_bucket(k: int, temperature: float) -> None:
    teacher, student = random_logits(6, 300, 1), random_logits(6, 300, 2)
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    expected = []
    for p_V, q_V in zip(p, q, strict=True):
        kept = np.argsort(-q_V)[:k]
        p_E, q_E = (np.append(x[kept], 1 - x[kept].sum()) for x in (p_V, q_V))
        expected.append(temperature**2 * (q_E * np.log(q_E / p_E)).sum())
    found = row_values(student, dense(teacher), on_student(k, temperature=temperature))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_gradient_by_finite_differences() -> None:
    teacher, student = dense(random_logits(3, 9, 1)), random_logits(3, 9, 2).requires_grad_()
    torch.autograd.gradcheck(lambda logits: row_sums(logits, teacher, on_student(4)), (student,))


@given(both_logits(), st.integers(1, 7))
@quick
def test_never_above_the_full_divergence_and_closer_with_more_ids(both: tuple, k: int) -> None:
    teacher, student = both
    student = student + 1e-3 * torch.arange(student.shape[1])  # equal probabilities have no order
    full = row_values(student, dense(teacher), [term("reverse_kl")])
    smaller, larger = (row_values(student, dense(teacher), on_student(kept)) for kept in (k, k + 1))
    assert smaller.min() >= -1e-9
    assert (smaller <= larger + 1e-9).all()
    assert (larger <= full + 1e-9).all()
    if k >= student.shape[1]:
        assert torch.equal(smaller, full)


def test_equal_models_have_value_and_gradient_zero() -> None:
    logits = random_logits(5, 9, 1)
    student = (logits + 3.0).requires_grad_()
    total = row_sums(student, dense(logits), on_student(3))[0]
    assert abs(total.item()) < 1e-12
    assert torch.autograd.grad(total, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT])
def test_excluded_ids_stay_finite(dtype: torch.dtype) -> None:
    inf = torch.inf
    teacher = torch.tensor([[1.0, -inf, 0.0, -inf], [5.0, 1.0, -inf, -inf]], dtype=dtype)
    student = torch.tensor([[-inf, 0.0, 1.0, -inf], [1.0, -inf, -inf, -inf]], dtype=dtype).requires_grad_()
    for k in (1, 2, 3, 4):
        values = row_values(student, dense(teacher), on_student(k))[0]
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_stored_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="of a live teacher only"):
        row_values(logits_of([0.5, 0.3, 0.2]), top_k(logits_of([0.5, 0.3, 0.2]), 2), on_student(2))
