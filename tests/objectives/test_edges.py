"""Where peers print NaN: -inf logits, p = q, no rows, tiny temperatures, mass that rounds to 1."""

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.objectives.chunked_head import chunked_head
from llmdistill.objectives.targets import TeacherTargets, TopKTargets
from llmdistill.objectives.total import row_sums, row_values
from tests.objectives.makers import FLOAT, dense, logits_of, random_logits, top_k
from tests.objectives.test_worked_values import term

INF = torch.inf
DIVERGENCES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"beta": 0.1}),
    ("skew_forward_kl", {}),
    ("skew_reverse_kl", {}),
    ("adaptive_kl", {}),
    ("total_variation", {}),
    ("alpha_beta", {}),
    ("alpha_beta", {"alpha": 0.3, "beta": 1.2}),
    ("taid", {}),
]
EVERY = [*DIVERGENCES, ("hard_ce", {}), ("sequence_ce", {}), ("z_loss", {})]


def value_and_gradient(
    student_RV: torch.Tensor, targets: TeacherTargets, name: str, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    student_RV = student_RV.clone().requires_grad_()
    values = row_values(student_RV, targets, [term(name, **options)])[0]
    (gradient,) = torch.autograd.grad(values.sum(), student_RV)
    return values.detach(), gradient


@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_minus_infinity_on_both_sides(kind: str) -> None:
    teacher = torch.tensor([[2.0, 1.0, -INF]], dtype=FLOAT)
    student = torch.tensor([[1.0, 2.0, -INF]], dtype=FLOAT)
    targets = dense(teacher) if kind == "dense" else top_k(teacher, 3)
    value, gradient = value_and_gradient(student, targets, "forward_kl")
    assert value.item() == pytest.approx(0.4621172, abs=6e-8)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("kind", "k"), [("dense", 3), ("top_k", 3), ("top_k", 2)])
def test_minus_infinity_of_the_teacher_alone(kind: str, k: int) -> None:
    teacher = torch.tensor([[2.0, 1.0, -INF]], dtype=FLOAT)
    targets = dense(teacher) if kind == "dense" else top_k(teacher, k)
    value, gradient = value_and_gradient(torch.tensor([[1.0, 2.0, 0.0]], dtype=FLOAT), targets, "forward_kl")
    assert value.item() == pytest.approx(0.5564615, abs=1e-7)
    torch.testing.assert_close(gradient, torch.tensor([[-0.48633, 0.39630, 0.09003]], dtype=FLOAT), atol=6e-6, rtol=0)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_minus_infinity_anywhere_is_finite(name: str, options: dict, dtype: torch.dtype, k: int) -> None:
    """Also where the student gives 0 to what the teacher expects: a large finite value."""
    teacher = torch.tensor([[1.0, -INF, 0.0, 2.0], [5.0, 1.0, -INF, -INF], [0.0, 0.0, 0.0, -INF]], dtype=dtype)
    student = torch.tensor([[-INF, 0.0, 1.0, 2.0], [1.0, -INF, -INF, 2.0], [-INF, 3.0, -INF, -INF]], dtype=dtype)
    targets = top_k(teacher, k) if k else dense(teacher)
    values, gradient = value_and_gradient(student, targets, name, **options)
    assert values.dtype is dtype
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    if name == "forward_kl" and k != 1:
        assert values[2] > 100  # the teacher's ⅔ at a token that the student excludes


@pytest.mark.parametrize(("name", "options"), DIVERGENCES)
@pytest.mark.parametrize("k", [0, 1, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.05])
def test_equal_models_have_value_and_gradient_zero(name: str, options: dict, k: int, temperature: float) -> None:
    logits = random_logits(5, 7, seed=1)
    targets = top_k(logits, k, temperatures=(2.0, 0.05)) if k else dense(logits)
    values, gradient = value_and_gradient(logits + 3.0, targets, name, temperature=temperature, **options)
    assert values.abs().max() < 1e-12
    if name == "total_variation":  # has no derivative there: rounding picks a subgradient
        assert gradient.abs().max() <= temperature
    else:
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("name", "options"), DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_temperatures_stay_finite(name: str, options: dict, dtype: torch.dtype) -> None:
    teacher, student = random_logits(6, 9, 2, scale=8.0), random_logits(6, 9, 3, scale=8.0)
    for targets in (dense(teacher.to(dtype)), top_k(teacher, 3, temperatures=(0.05,))):
        values, gradient = value_and_gradient(student.to(dtype), targets, name, temperature=0.05, **options)
        assert values.dtype is torch.float32
        assert values.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_no_rows(name: str, options: dict) -> None:
    values, gradient = value_and_gradient(torch.zeros(0, 5), top_k(torch.zeros(0, 5), 2), name, **options)
    assert values.shape == (0,)
    assert gradient.shape == (0, 5)


def test_no_rows_still_reach_every_weight() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    sums = chunked_head(hidden, weight, top_k(torch.zeros(0, 6), 2), [term("forward_kl")], measure_gradients=True)
    sums.total.backward()
    assert sums.total.item() == 0.0
    assert sums.values.tolist() == [0.0]
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0.0


@pytest.mark.parametrize(("name", "options"), DIVERGENCES)
def test_a_mass_of_one_in_float32_is_no_empty_tail(name: str, options: dict) -> None:
    """The stored mass rounds to 1 while the student has a tail of 1e-3: reverse KL must not see log 0."""
    targets = TopKTargets(
        actual_ids_R=torch.tensor([0]),
        ids_RK=torch.tensor([[0, 1]]),
        logprobs_RK=torch.tensor([[0.6, 0.4]]).log(),
        mass_R=torch.tensor([1.0]),
    )
    values, _ = value_and_gradient(torch.tensor([[0.6, 0.399, 0.0005, 0.0005]]).log(), targets, name, **options)
    assert 0 <= values.item() < 0.05


def test_the_tail_is_exact_where_one_minus_the_mass_rounds() -> None:
    """Q outside the kept id is 1e-12: 1 - q in float32 would be 0 or 6e-8."""
    targets = top_k(logits_of([0.5, 0.25, 0.25]).float(), 1)
    student = torch.tensor([[0.0, -28.0, -28.0]])
    value = row_values(student, targets, [term("forward_kl")]).item()
    # .5·log .5 + .5·(log .5 + 28 - log 2), the student's kept log-probability being 0
    assert value == pytest.approx(14 - 1.5 * 0.6931472, rel=1e-6)


def test_a_temperature_that_is_not_captured_is_refused() -> None:
    logits = random_logits(2, 5, 0)
    with pytest.raises(ConfigError, match=r"at temperature 3, only at 1, 2") as caught:
        row_sums(logits, top_k(logits, 2, temperatures=(2.0,)), [term("forward_kl", temperature=3.0)])
    assert "use one of these temperatures" in str(caught.value)


def test_float64_stays_and_bfloat16_is_computed_in_float32() -> None:
    logits = random_logits(2, 5, 0)
    for dtype, expected in ((FLOAT, FLOAT), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        for targets in (dense(logits), top_k(logits, 2)):
            for name, options in EVERY:
                assert row_values(logits.to(dtype), targets, [term(name, **options)]).dtype is expected
