"""Objectives that look at the teacher's text, or at the student's own."""

import pytest
import torch

from llmdistill.objectives.chunked_head import chunked_head
from llmdistill.objectives.divergence import skew_forward_kl, skew_reverse_kl
from llmdistill.objectives.targets import TeacherTargets
from llmdistill.objectives.total import row_sums, row_values, weighted_total
from tests.objectives.makers import FLOAT, dense, random_logits, top_k
from tests.objectives.test_edges import EVERY
from tests.objectives.test_weighted import weighted
from tests.objectives.test_worked_values import term

ROWS, VOCABULARY = 5, 7
BY_STUDENT = torch.tensor([False, True, True, False, True])


def marked(targets: TeacherTargets) -> TeacherTargets:
    return type(targets)(**(vars(targets) | {"student_rows_R": BY_STUDENT}))


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_other_rows_have_value_and_gradient_zero(name: str, options: dict, kind: str) -> None:
    teacher = random_logits(ROWS, VOCABULARY, 1)
    targets = dense(teacher) if kind == "dense" else top_k(teacher, 3)
    student = random_logits(ROWS, VOCABULARY, 2).requires_grad_()

    def run(text: str, targets: TeacherTargets) -> tuple[torch.Tensor, torch.Tensor]:
        values = row_values(student, targets, [term(name, **options, text=text)])[0]
        return values, torch.autograd.grad(values.sum(), student)[0]

    everything = run("all", targets)
    for text, chosen in (
        ("all", torch.ones(ROWS, dtype=torch.bool)),
        ("student", BY_STUDENT),
        ("teacher", ~BY_STUDENT),
    ):
        for found, whole in zip(run(text, marked(targets)), everything, strict=True):
            assert torch.equal(found[chosen], whole[chosen])
            assert found[~chosen].abs().sum() == 0.0


def test_pairing_by_who_wrote_the_text() -> None:
    """Skew forward KL on the teacher's text and skew reverse KL on the student's: DistiLLM-2, arXiv 2503.07067."""
    teacher, student = random_logits(ROWS, VOCABULARY, 1), random_logits(ROWS, VOCABULARY, 2)
    terms = [
        term("skew_forward_kl", alpha=0.2, text="teacher"),
        term("skew_reverse_kl", alpha=0.2, weight=3.0, text="student"),
    ]
    p, q = teacher.log_softmax(1), student.log_softmax(1)
    expected = sum(
        3.0 * skew_reverse_kl(p[r : r + 1], q[r : r + 1], 0.2)
        if BY_STUDENT[r]
        else skew_forward_kl(p[r:], q[r:], 0.2)[:1]
        for r in range(ROWS)
    )
    sums = row_sums(student, marked(dense(teacher)), terms)
    # The denominator counts the rows of both texts.
    torch.testing.assert_close(weighted_total(sums, terms, ROWS), expected[0] / ROWS)


@pytest.mark.parametrize("kind", ["dense", "top_k", "weighted"])
def test_fused_equal_to_plain(kind: str) -> None:
    teacher = random_logits(ROWS, VOCABULARY, 3)
    targets = {"dense": dense(teacher), "top_k": top_k(teacher, 3), "weighted": weighted(teacher.softmax(1), 4, 0)}[
        kind
    ]
    terms = [term("forward_kl", text="teacher"), term("forward_kl", text="student"), term("sequence_ce", weight=0.3)]
    hidden, weight = random_logits(ROWS, 4, 1).requires_grad_(), random_logits(VOCABULARY, 4, 2)
    plain = row_sums(hidden @ weight.T, marked(targets), terms)
    sums = chunked_head(hidden, weight, marked(targets), terms, chunk_rows=2, group_rows=4, measure_gradients=True)
    torch.testing.assert_close(sums.values, plain.detach())
    gradients = [torch.autograd.grad(total, hidden)[0] for total in (sums.total, weighted_total(plain, terms, 1))]
    torch.testing.assert_close(*gradients)
    whole = row_sums(hidden.detach() @ weight.T, targets, [term("forward_kl")])
    torch.testing.assert_close(sums.values[:2].sum(), whole[0])


def test_targets_that_do_not_say_who_wrote_are_refused() -> None:
    logits = torch.zeros(2, 3, dtype=FLOAT)
    with pytest.raises(AssertionError, match="do not say who wrote"):
        row_values(logits, dense(logits), [term("forward_kl", text="student")])
