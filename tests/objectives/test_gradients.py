"""Gradients against finite differences, and against what the papers say where the target moves."""

import pytest
import torch

from llmdistill.objectives.adaptive import adaptive_kl, head_share, taid
from llmdistill.objectives.divergence import forward_kl, reverse_kl
from llmdistill.objectives.gather import gather_and_rest
from llmdistill.objectives.total import row_sums
from tests.objectives.makers import FLOAT, dense, random_logits, top_k
from tests.objectives.test_edges import EVERY
from tests.objectives.test_weighted import weighted
from tests.objectives.test_worked_values import term

MOVING = ("adaptive_kl",)  # `taid` stands at the teacher at the end of the training


@pytest.mark.parametrize(("name", "options"), [case for case in EVERY if case[0] not in MOVING])
@pytest.mark.parametrize("kind", ["dense", "top_k", "top_k at 2", "renormalize", "all kept"])
def test_gradcheck(name: str, options: dict, kind: str) -> None:
    teacher, student = random_logits(3, 6, 10), random_logits(3, 6, 11).requires_grad_()
    targets = {"dense": dense(teacher), "all kept": top_k(teacher, 6)}.get(kind, top_k(teacher, 2, temperatures=(2.0,)))
    if name not in ("hard_ce", "sequence_ce", "z_loss"):
        options = options | ({"temperature": 2.0} if kind == "top_k at 2" else {})
        options = options | ({"tail": "renormalize"} if kind == "renormalize" else {})
    terms = [term(name, **options)]
    torch.autograd.gradcheck(lambda logits: row_sums(logits, targets, terms), (student,))


@pytest.mark.parametrize("tail", ["ground_truth", "none"])
def test_gradcheck_of_the_other_policies(tail: str) -> None:
    targets, student = top_k(random_logits(5, 6, 10), 2, seed=3), random_logits(5, 6, 11).requires_grad_()
    torch.autograd.gradcheck(lambda logits: row_sums(logits, targets, [term("forward_kl", tail=tail)]), (student,))


def test_gradcheck_of_weighted_entries() -> None:
    targets, student = weighted(random_logits(3, 6, 10).softmax(1), 5, 0), random_logits(3, 6, 11).requires_grad_()
    torch.autograd.gradcheck(lambda logits: row_sums(logits, targets, [term("forward_kl")]), (student,))


@pytest.mark.parametrize("left_out", [0, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gather_and_rest(left_out: int, temperature: float) -> None:
    """Repeated ids in the columns, and nothing left where all five ids are left out."""
    logits = random_logits(4, 5, 5).requires_grad_()
    ids = torch.tensor([[0, 1, 2, 3, 4, 1], [4, 2, 0, 1, 3, 4], [1, 0, 2, 3, 4, 0], [3, 4, 1, 0, 2, 2]])

    def both(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gathered, rest = gather_and_rest(x, ids, left_out, temperature)
        return (gathered,) if left_out == 5 else (gathered, rest)

    torch.autograd.gradcheck(both, (logits,))
    _, rest = gather_and_rest(logits, ids, left_out, temperature)
    plain = (logits / temperature).scatter(1, ids[:, :left_out], -torch.inf).logsumexp(1)
    torch.testing.assert_close(rest, plain)


def test_adaptive_kl_holds_its_share_constant() -> None:
    teacher, student = random_logits(4, 6, 1).log_softmax(1), random_logits(4, 6, 2).requires_grad_()

    def gradient(values: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(values.sum(), student)[0]

    log_q = student.log_softmax(1)
    share = head_share(teacher, log_q, 0.5)
    assert not share.requires_grad
    expected = share[:, None] * gradient(forward_kl(teacher, student.log_softmax(1)))
    expected += (1 - share)[:, None] * gradient(reverse_kl(teacher, student.log_softmax(1)))
    torch.testing.assert_close(gradient(adaptive_kl(teacher, log_q)), expected)


def test_head_share_by_hand() -> None:
    """P = (.4, .1, .3, .2): up to a mass of .75 the head is .4 and .3; gaps .1, .1, .1, .1 in that order."""
    p = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=FLOAT).log()
    q = torch.tensor([[0.3, 0.2, 0.4, 0.1]], dtype=FLOAT).log()
    assert head_share(p, q, 0.75).item() == pytest.approx(0.5)
    assert head_share(p, q, 0.5).item() == pytest.approx(0.25)
    assert head_share(p, q, 0.1).item() == pytest.approx(0.25)  # the first always is in the head
    assert head_share(p, p, 0.5).item() == 0.5


def test_taid_moves_from_nothing_to_the_forward_kl_and_holds_its_target_constant() -> None:
    teacher, student = random_logits(4, 6, 1).log_softmax(1), random_logits(4, 6, 2).requires_grad_()
    log_q = student.log_softmax(1)
    assert taid(teacher, log_q, 0.0).abs().max() < 1e-14
    torch.testing.assert_close(taid(teacher, log_q, 1.0), forward_kl(teacher, log_q))
    (gradient,) = torch.autograd.grad(taid(teacher, log_q, 0.3).sum(), student)
    target = (0.7 * student.detach() + 0.3 * teacher).softmax(1)
    torch.testing.assert_close(gradient, student.detach().softmax(1) - target)
