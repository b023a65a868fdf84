"""Entries that are right on average: every possible draw is enumerated, and the mean is exact."""

import itertools

import pytest
import torch

from llmdistill.objectives.targets import TopKTargets, WeightedTargets
from llmdistill.objectives.total import row_values
from tests.objectives.makers import FLOAT, dense, logits_of, random_logits, top_k
from tests.objectives.test_worked_values import term

P, Q = (0.5, 0.3, 0.15, 0.05), [0.2, 0.1, 0.4, 0.3]


def weighted(p_RV: torch.Tensor, draws: int, seed: int) -> WeightedTargets:
    """`draws` draws with replacement, each worth 1 / draws, not merged."""
    ids = torch.multinomial(p_RV, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
    entropy = -(p_RV * p_RV.log()).sum(1)
    weights = torch.full_like(ids, 1, dtype=p_RV.dtype) / draws
    return WeightedTargets(actual_ids_R=ids[:, 0], ids_RK=ids, weights_RK=weights, entropy_R=entropy)


def gradient_and_value(targets: WeightedTargets | TopKTargets, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    student = logits_of(Q).expand(len(targets.ids_RK), -1).clone().requires_grad_()
    values = row_values(student, targets, [term("forward_kl", **options)])[0]
    return torch.autograd.grad(values.sum(), student)[0], values.detach()


def exact() -> tuple[torch.Tensor, torch.Tensor]:
    student = logits_of(Q).requires_grad_()
    value = row_values(student, dense(logits_of(list(P))), [term("forward_kl")])[0]
    return torch.autograd.grad(value.sum(), student)[0][0], value.detach()[0]


def mean_over(probabilities: list[float], rows: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(probabilities, dtype=FLOAT)
    assert weights.sum().item() == pytest.approx(1.0)
    return (weights.reshape(-1, *[1] * (rows.ndim - 1)) * rows).sum(0)


def entropy(rows: int) -> torch.Tensor:
    p = torch.tensor(P, dtype=FLOAT)
    return -(p * p.log()).sum().expand(rows)


def test_all_pairs_of_random_draws_average_to_the_divergence() -> None:
    pairs = list(itertools.product(range(4), repeat=2))
    ids = torch.tensor(pairs)
    targets = WeightedTargets(
        actual_ids_R=ids[:, 0],
        ids_RK=ids,
        weights_RK=torch.full((16, 2), 0.5, dtype=FLOAT),
        entropy_R=entropy(16),
    )
    gradient, values = gradient_and_value(targets)
    probabilities = [P[a] * P[b] for a, b in pairs]
    expected_gradient, expected = exact()
    torch.testing.assert_close(mean_over(probabilities, values), expected)
    torch.testing.assert_close(mean_over(probabilities, gradient), expected_gradient)
    assert values.std() > 0.1  # single draws are far from it


def test_head_and_draws_from_the_tail_average_to_the_divergence() -> None:
    """Head: ids 0 and 1; one draw from the rest, worth its whole mass of .2. Padding has weight 0."""
    targets = WeightedTargets(
        actual_ids_R=torch.tensor([0, 0]),
        ids_RK=torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0]]),
        weights_RK=torch.tensor([[0.5, 0.3, 0.2, 0.0]] * 2, dtype=FLOAT),
        entropy_R=entropy(2),
        head_counts_R=torch.tensor([2, 2]),
    )
    gradient, values = gradient_and_value(targets)
    expected_gradient, expected = exact()
    torch.testing.assert_close(mean_over([0.75, 0.25], values), expected)
    torch.testing.assert_close(mean_over([0.75, 0.25], gradient), expected_gradient)


def test_without_an_entropy_it_is_the_cross_entropy() -> None:
    targets = WeightedTargets(
        actual_ids_R=torch.tensor([0]), ids_RK=torch.tensor([[0, 2]]), weights_RK=torch.tensor([[0.5, 0.5]])
    )
    value = row_values(logits_of(Q), targets, [term("forward_kl")]).item()
    assert value == pytest.approx(-0.5 * torch.tensor([0.2, 0.4]).log().sum().item(), rel=1e-6)


def test_the_actual_token_replaces_the_tail_on_average() -> None:
    """`ground_truth`, top 2 of 4: the mean over the token that the teacher samples is the full divergence."""
    two = top_k(logits_of(list(P)), 2)
    targets = TopKTargets(
        actual_ids_R=torch.arange(4),
        ids_RK=two.ids_RK.expand(4, -1),
        logprobs_RK=two.logprobs_RK.expand(4, -1),
        mass_R=two.mass_R.expand(4),
        actual_logprobs_R=torch.tensor(P, dtype=FLOAT).log(),
    )
    gradient, values = gradient_and_value(targets, tail="ground_truth")
    expected_gradient, expected = exact()
    torch.testing.assert_close(mean_over(list(P), values), expected)
    torch.testing.assert_close(mean_over(list(P), gradient), expected_gradient)
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "total_variation", "adaptive_kl", "alpha_beta"])
def test_other_divergences_see_the_exact_head_and_a_tail(name: str) -> None:
    """Rows of different head sizes equal the top-k targets of that size; what was drawn from the tail is not used."""
    teacher, student = random_logits(2, 7, 1), random_logits(2, 7, 2)
    full = top_k(teacher, 5)
    counts = torch.tensor([2, 4])
    weights = full.logprobs_RK.exp()
    weights[0, 2:], weights[1, 4:] = 0.123, 0.0
    targets = WeightedTargets(
        actual_ids_R=full.actual_ids_R, ids_RK=full.ids_RK, weights_RK=weights, head_counts_R=counts
    )
    found = row_values(student, targets.head(), [term(name)])[0]
    for row, count in enumerate(counts.tolist()):
        alone = row_values(student[row : row + 1], top_k(teacher[row : row + 1], count), [term(name)])
        assert found[row].item() == pytest.approx(alone.item(), rel=1e-9)
    if name != "forward_kl":  # which has the unbiased way instead
        torch.testing.assert_close(row_values(student, targets, [term(name)])[0], found)
