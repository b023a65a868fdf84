"""The gradient on drawn tokens against that of the exact divergence, by enumeration and by drawing."""

import itertools
import math

import pytest
import torch

from llmdistill.objectives.chunked_head import chunked_head, chunked_values
from llmdistill.objectives.policy_gradient import later_advantages, policy_gradient
from llmdistill.objectives.targets import TeacherTargets, TopKTargets, WeightedTargets
from llmdistill.objectives.terms import policy_gradient_values
from llmdistill.objectives.total import row_sums, row_values
from tests.objectives.makers import FLOAT, dense, logits_of, random_logits, top_k
from tests.objectives.test_weighted import weighted
from tests.objectives.test_worked_values import P, Q, term

ON_ANY = term("policy_gradient", text="all")


def targets_of(teacher: torch.Tensor, actual: torch.Tensor, row_weights: torch.Tensor | None = None) -> TopKTargets:
    """Two ids a row; the actual token is mostly another."""
    kept = top_k(teacher, 2)
    logprobs = teacher.log_softmax(1).gather(1, actual[:, None])[:, 0]
    changes = {"actual_ids_R": actual, "actual_logprobs_R": logprobs, "row_weights_R": row_weights}
    return TopKTargets(**(vars(kept) | changes))


def gradient_of_the_divergence(teacher_V: torch.Tensor, student_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits_V = student_V.clone().requires_grad_()
    p_V, q_V = teacher_V.log_softmax(0), logits_V.log_softmax(0)
    value = (q_V.exp() * (q_V - p_V)).sum()
    return value.detach(), torch.autograd.grad(value, logits_V)[0]


@pytest.mark.parametrize("kind", ["top_k", "dense"])
def test_expected_value_and_gradient_are_those_of_the_reverse_kl(kind: str) -> None:
    """Every token once, weighted with the probability that the student draws it."""
    vocabulary = 6
    teacher_V, student_V = random_logits(2, vocabulary, 4)
    logits_V = student_V.clone().requires_grad_()
    actual = torch.arange(vocabulary)
    targets = targets_of(teacher_V.expand(vocabulary, -1), actual, student_V.softmax(0))
    if kind == "dense":
        shared = {"actual_ids_R": actual, "row_weights_R": targets.row_weights_R}
        plain = dense(teacher_V.expand(vocabulary, -1))
        targets = type(plain)(**(vars(plain) | shared))
    total = row_sums(logits_V.expand(vocabulary, -1), targets, [ON_ANY])[0]
    value, gradient = gradient_of_the_divergence(teacher_V, student_V)
    torch.testing.assert_close(total.detach(), value)
    torch.testing.assert_close(torch.autograd.grad(total, logits_V)[0], gradient)
    assert gradient.norm() > 0.1


def test_drawn_tokens_agree_within_their_standard_error() -> None:
    draws, vocabulary = 20_000, 6
    teacher_V, student_V = random_logits(2, vocabulary, 4)
    generator = torch.Generator().manual_seed(0)
    actual = torch.multinomial(student_V.softmax(0), draws, replacement=True, generator=generator)
    logits_RV = student_V.repeat(draws, 1).requires_grad_()
    values_R = row_values(logits_RV, targets_of(teacher_V.expand(draws, -1), actual), [ON_ANY])[0]
    (gradients_RV,) = torch.autograd.grad(values_R.sum(), logits_RV)
    value, gradient_V = gradient_of_the_divergence(teacher_V, student_V)
    for found, expected in ((values_R.detach()[:, None], value[None]), (gradients_RV, gradient_V)):
        error = found.std(dim=0) / math.sqrt(draws)
        assert ((found.mean(dim=0) - expected).abs() < 4 * error).all()
        assert error.max() < 0.1 * expected.abs().max()
    # The teacher's own tokens would not do.
    taught = torch.multinomial(teacher_V.softmax(0), draws, replacement=True, generator=generator)
    values_R = row_values(logits_RV, targets_of(teacher_V.expand(draws, -1), taught), [ON_ANY])[0]
    (wrong_RV,) = torch.autograd.grad(values_R.sum(), logits_RV)
    assert ((wrong_RV.mean(dim=0) - gradient_V).abs() > 4 * wrong_RV.std(dim=0) / math.sqrt(draws)).any()


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_expected_gradient_over_whole_responses(discount: float) -> None:
    """All 27 responses of 3 tokens, from a student with a row for each prefix.

    With discount 1 the gradient is that of the KL of responses, with 0 that of the KL of tokens after prefixes whose
    probability is held constant. The value is the KL of responses either way.
    """
    tokens, vocabulary = 3, 3
    prefixes = [prefix for n in range(tokens) for prefix in itertools.product(range(vocabulary), repeat=n)]
    number_of = {prefix: number for number, prefix in enumerate(prefixes)}
    responses = list(itertools.product(range(vocabulary), repeat=tokens))
    rows = torch.tensor([number_of[response[:t]] for response in responses for t in range(tokens)])
    actual = torch.tensor(responses).flatten()
    records = torch.arange(len(responses)).repeat_interleave(tokens)
    teacher_PV, student_PV = random_logits(len(prefixes), vocabulary, 1), random_logits(len(prefixes), vocabulary, 2)

    def of_actual(table_PV: torch.Tensor) -> torch.Tensor:
        return table_PV.log_softmax(1)[rows].gather(1, actual[:, None]).view(-1, tokens)

    p_ST, q_ST = of_actual(teacher_PV), of_actual(student_PV)
    drawn_S = q_ST.sum(1).exp()
    targets = targets_of(teacher_PV[rows], actual, drawn_S.repeat_interleave(tokens))
    later = later_advantages((p_ST - q_ST).flatten(), records, discount)
    targets = TopKTargets(**(vars(targets) | {"later_advantages": {discount: later}}))
    table_PV = student_PV.clone().requires_grad_()
    total = row_sums(table_PV[rows], targets, [term("policy_gradient", text="all", discount=discount)])[0]
    (found,) = torch.autograd.grad(total, table_PV)

    q_ST = of_actual(table_PV)
    whole = (q_ST.sum(1).exp() * (q_ST - p_ST).sum(1)).sum()
    torch.testing.assert_close(total, whole)
    if discount == 0.0:
        q_PV = table_PV.log_softmax(1)
        divergence_P = (q_PV.exp() * (q_PV - teacher_PV.log_softmax(1))).sum(1)
        reached = [sum(drawn_S[s] for s, r in enumerate(responses) if r[: len(p)] == p) for p in prefixes]
        whole = (torch.stack(reached) * divergence_P).sum()
    torch.testing.assert_close(found, torch.autograd.grad(whole, table_PV)[0])


@pytest.mark.parametrize("discount", [0.3, 1.0])
def test_later_advantages_end_with_the_record(discount: float) -> None:
    records = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 5, 5])
    advantages = random_logits(1, len(records), 7)[0]
    expected = [
        sum(discount ** (s - t) * advantages[s] for s in range(t + 1, len(records)) if records[s] == records[t])
        for t in range(len(records))
    ]
    torch.testing.assert_close(later_advantages(advantages, records, discount), torch.tensor(expected, dtype=FLOAT))
    assert later_advantages(advantages[:0], records[:0], discount).shape == (0,)
    assert later_advantages(advantages, records, 0.0).abs().max() == 0.0


def test_value_and_gradient_by_hand() -> None:
    """P = .7 and q = .5 of the actual token: A = log 1.4, and -A·(1 - .5, -.3, -.2) by the logits."""
    student = logits_of(Q).requires_grad_()
    for targets in (dense(logits_of(P)), targets_of(logits_of(P), torch.tensor([0]))):
        value = row_values(student, targets, [ON_ANY])
        assert value.item() == pytest.approx(-math.log(1.4), abs=6e-8)
        (gradient,) = torch.autograd.grad(value, student)
        torch.testing.assert_close(gradient, -math.log(1.4) * torch.tensor([[0.5, -0.3, -0.2]], dtype=FLOAT))
    later = torch.tensor([2.0])
    assert policy_gradient(torch.tensor([0.7]).log(), torch.tensor([0.5]).log(), later).item() == pytest.approx(
        -math.log(1.4)
    )


def test_equal_models_have_value_and_gradient_zero() -> None:
    student = random_logits(5, 7, 1).requires_grad_()
    value = row_values(student, top_k(student.detach(), 3), [ON_ANY])
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["top_k", "dense", "weighted"])
def test_fused_equal_to_plain(kind: str) -> None:
    """The advantages of later rows cross the chunks of the head."""
    rows, vocabulary, discount = 7, 11, 0.9
    teacher = random_logits(rows, vocabulary, 3)
    targets: TeacherTargets = {
        "top_k": top_k(teacher, 3),
        "dense": dense(teacher),
        "weighted": WeightedTargets(
            **(vars(weighted(teacher.softmax(1), 4, 0)) | {"actual_logprobs_R": teacher[:, 0].log_softmax(0)})
        ),
    }[kind]
    hidden, weight = random_logits(rows, 6, 1).requires_grad_(), random_logits(vocabulary + 2, 6, 2)
    logits = hidden @ weight[:vocabulary].T
    plain = row_values(logits, targets, [ON_ANY])[0].detach()
    gaps = chunked_values(hidden, weight, targets, policy_gradient_values, vocabulary, chunk_rows=2)
    torch.testing.assert_close(gaps, plain)
    assert not gaps.requires_grad
    later = later_advantages(-gaps, torch.tensor([0, 0, 0, 0, 1, 1, 1]), discount)
    targets = type(targets)(**(vars(targets) | {"later_advantages": {discount: later}}))
    terms = [term("policy_gradient", text="all", discount=discount)]
    totals = row_sums(logits, targets, terms)[0], chunked_head(hidden, weight, targets, terms, vocabulary, chunk_rows=2)
    gradients = [torch.autograd.grad(total, hidden)[0] for total in (totals[0], totals[1].total)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(totals[1].values[0], plain.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_excluded_tokens_stay_finite(dtype: torch.dtype) -> None:
    inf = torch.inf
    teacher = torch.tensor([[-inf, 0.0], [0.0, 0.0], [-inf, 0.0]])
    student = torch.tensor([[0.0, 0.0], [-inf, 0.0], [-inf, 0.0]], dtype=dtype).requires_grad_()
    for targets in (dense(teacher), targets_of(teacher, torch.tensor([0, 0, 0]))):
        value = row_values(student, targets, [ON_ANY])[0]
        assert value.dtype is torch.float32
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()
