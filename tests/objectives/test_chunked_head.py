"""The fused form against the readable one."""

import itertools

import pytest
import torch

from llmdistill.objectives.chunked_head import chunked_head
from llmdistill.objectives.targets import HeadTargets, TeacherTargets
from llmdistill.objectives.terms import Term
from llmdistill.objectives.total import row_sums, weighted_total
from tests.objectives.makers import FLOAT, dense, random_logits, top_k
from tests.objectives.test_weighted import weighted
from tests.objectives.test_worked_values import term

ROWS, VOCABULARY, WIDTH = 7, 11, 6
EVERYTHING = [
    term("forward_kl", weight=0.7),
    term("reverse_kl", weight=0.2, temperature=2.0),
    term("jsd", weight=0.5, tail="renormalize"),
    term("skew_forward_kl", weight=0.1),
    term("skew_reverse_kl", weight=0.1),
    term("adaptive_kl", weight=0.3),
    term("total_variation", weight=0.3),
    term("alpha_beta", weight=0.4),
    term("taid", weight=0.4),
    term("sequence_ce", weight=0.3),
    term("z_loss", weight=0.01),
]


def teachers() -> dict[str, tuple[TeacherTargets, list[Term]]]:
    logits = random_logits(ROWS, VOCABULARY, 3)
    hidden, head = random_logits(ROWS, 4, 4), random_logits(VOCABULARY, 4, 5)
    actual = torch.arange(ROWS)
    few = [term("forward_kl"), term("sequence_ce", weight=0.2), term("z_loss")]
    return {
        "top_k": (top_k(logits, 3, temperatures=(2.0,)), EVERYTHING),
        "dense": (dense(logits), EVERYTHING),
        "head": (HeadTargets(actual_ids_R=actual, hidden_RD=hidden, head_weight=head), EVERYTHING),
        "weighted": (weighted(logits.softmax(1), 4, 0), few),
        "ground_truth": (top_k(logits, 2), [term("forward_kl", tail="ground_truth")]),
    }


@pytest.mark.parametrize(("chunk_rows", "group_rows"), [(1, 1), (2, 5), (3, 7), (None, None)])
@pytest.mark.parametrize("kind", teachers())
@pytest.mark.parametrize("weigh_rows", [False, True])
def test_equal_to_the_plain_form(chunk_rows: int | None, group_rows: int | None, kind: str, weigh_rows: bool) -> None:
    targets, terms = teachers()[kind]
    if weigh_rows:
        row_weights = torch.arange(ROWS) / 2
        targets = type(targets)(**(vars(targets) | {"row_weights_R": row_weights}))
    hidden, weight = random_logits(ROWS, WIDTH, 1), random_logits(VOCABULARY + 2, WIDTH, 2)

    def run(fused: bool) -> list[torch.Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            sums = chunked_head(h, w, targets, terms, VOCABULARY, True, chunk_rows, group_rows)
            total, values, squares = sums.total, sums.values, sums.squared_gradients
        else:
            logits = h @ w[:VOCABULARY].T
            values = row_sums(logits, targets, terms)
            total = weighted_total(values, terms, 1)
            gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values]
            squares = torch.stack([gradient.square().sum() for gradient in gradients])
        (total * 0.25).backward()
        assert h.grad is not None
        assert w.grad is not None
        assert squares is not None
        assert w.grad[VOCABULARY:].abs().max() == 0.0
        return [total.detach(), values.detach(), squares, h.grad, w.grad]

    for fused, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True), (False, False)])
def test_frozen_sides(trained: tuple[bool, bool]) -> None:
    targets, terms = teachers()["top_k"]
    hidden, weight = random_logits(ROWS, WIDTH, 1), random_logits(VOCABULARY, WIDTH, 2)
    expected = row_sums(hidden @ weight.T, targets, terms)
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    sums = chunked_head(hidden, weight, targets, terms, chunk_rows=2)
    torch.testing.assert_close(sums.values, expected)
    assert sums.total.requires_grad is any(trained)
    if any(trained):
        sums.total.backward()
        assert (hidden.grad is not None, weight.grad is not None) == trained


def test_rows_beyond_the_vocabulary_do_not_exist() -> None:
    """Teacher [2, 1, 0], student [0, 1, 2] with a fourth row of the head that would win: T = 1 gives 1.1504208."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]], dtype=FLOAT)
    weight = torch.diag(torch.tensor([0.0, 1.0, 2.0, 50.0], dtype=FLOAT))
    hidden = torch.ones(1, 4, dtype=FLOAT)
    for targets in (top_k(teacher, 2), top_k(teacher, 3), dense(teacher)):
        value = chunked_head(hidden, weight, targets, [term("forward_kl")], vocabulary_size=3).values.item()
        # With two ids kept the third is alone in the bucket.
        assert value == pytest.approx(1.1504208, abs=6e-8)


def test_tied_weights_collect_both_gradients() -> None:
    targets, terms = teachers()["top_k"]
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6])

    def gradient(fused: bool) -> torch.Tensor:
        weight = random_logits(VOCABULARY, WIDTH, 2).requires_grad_()
        hidden = weight[ids].tanh()
        total = (
            chunked_head(hidden, weight, targets, terms, chunk_rows=3).total
            if fused
            else weighted_total(row_sums(hidden @ weight.T, targets, terms), terms, 1)
        )
        return torch.autograd.grad(total, weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-9, atol=1e-9)


def test_splitting_the_rows_changes_nothing() -> None:
    """Any micro-batches and ranks: totals and gradients add up to those of the whole step."""
    targets, terms = teachers()["top_k"]
    hidden, weight = random_logits(ROWS, WIDTH, 1), random_logits(VOCABULARY, WIDTH, 2)

    def run(cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        w = weight.clone().requires_grad_()
        total = torch.zeros((), dtype=FLOAT)
        for start, stop in itertools.pairwise(cuts):
            part = chunked_head(hidden[start:stop], w, targets.rows(start, stop), terms).total / ROWS
            part.backward()
            total += part.detach()
        assert w.grad is not None
        return total, w.grad

    whole = run([0, ROWS])
    for cuts in ([0, 1, ROWS], [0, 0, 3, 3, 5, ROWS], list(range(ROWS + 1))):
        for found, expected in zip(run(cuts), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_bfloat16_gradients_follow_those_of_float32() -> None:
    targets, terms = top_k(random_logits(ROWS, VOCABULARY, 3).float(), 3), [term("forward_kl"), term("sequence_ce")]
    hidden, weight = random_logits(ROWS, WIDTH, 1).bfloat16(), random_logits(VOCABULARY, WIDTH, 2).bfloat16()

    def run(dtype: torch.dtype) -> torch.Tensor:
        w = weight.to(dtype).requires_grad_()
        sums = chunked_head(hidden.to(dtype), w, targets, terms, chunk_rows=2, group_rows=4)
        assert sums.values.dtype is torch.float32
        (gradient,) = torch.autograd.grad(sums.total, w)
        assert gradient.dtype is dtype
        return gradient.float()

    exact = run(torch.float32)
    assert (run(torch.bfloat16) - exact).norm() < 0.02 * exact.norm()
