import math

import pytest
import torch

from llmdistill.objectives.self_distillation import contrastive, deep_supervision, mean_states
from llmdistill.objectives.total import row_sums
from tests.objectives.makers import FLOAT, dense, random_logits
from tests.objectives.test_worked_values import term


def test_deep_supervision_learns_from_the_last_layer_and_does_not_move_it() -> None:
    final, early, late = (random_logits(5, 4, seed).requires_grad_() for seed in (1, 2, 3))
    weight, terms = random_logits(9, 4, 4).requires_grad_(), [term("forward_kl", temperature=2.0)]
    actual = torch.zeros(5, dtype=torch.int64)
    sums = deep_supervision([early, late], final, weight, actual, terms, vocabulary_size=7)
    teacher = dense((final @ weight[:7].T).detach())
    plain = [row_sums(layer @ weight[:7].T, teacher, terms) for layer in (early, late)]
    torch.testing.assert_close(sums.values, (plain[0] + plain[1]).detach() / 2)
    expected = torch.autograd.grad((plain[0] + plain[1]).sum() / 2, [early, late, weight])
    sums.total.backward()
    for tensor, gradient in zip((early, late, weight), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)
    assert final.grad is None
    nothing = deep_supervision([final], final, weight, actual, terms)
    assert nothing.values.item() == pytest.approx(0.0, abs=1e-12)


def test_contrastive_by_hand() -> None:
    """Cosines with its own view 1, with the other 0: -log(e^{1/τ} / (e^{1/τ} + 1)) at τ = ½."""
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=FLOAT)
    found = contrastive(first, first * 5, temperature=0.5)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-2))] * 2)
    assert contrastive(first, first.flip(0), temperature=0.5)[0].item() == pytest.approx(math.log(1 + math.exp(2)))
    assert contrastive(first[:1], first[1:]).item() == 0.0
    assert contrastive(first, first, groups_N=torch.tensor([0, 1])).tolist() == [0.0, 0.0]
    torch.autograd.gradcheck(contrastive, (random_logits(3, 4, 0).requires_grad_(), random_logits(3, 4, 1)))


def test_mean_states_of_packed_records() -> None:
    hidden = torch.arange(8.0).reshape(1, 4, 2).repeat(2, 1, 1)
    segments = torch.tensor([[0, 0, 1, -1], [2, -1, -1, -1]])
    assert mean_states(hidden, segments, 4).tolist() == [[1.0, 2.0], [4.0, 5.0], [0.0, 1.0], [0.0, 0.0]]
