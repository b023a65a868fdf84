"""What holds for all inputs."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmdistill.objectives.total import row_sums, row_values
from tests.objectives.makers import FLOAT, dense, top_k
from tests.objectives.test_edges import DIVERGENCES
from tests.objectives.test_worked_values import term

pytestmark = pytest.mark.filterwarnings("error")
quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
F_DIVERGENCES = [case for case in DIVERGENCES if case[0] not in ("adaptive_kl", "taid") and case[1].get("beta") != 1.2]


@st.composite
def both_logits(draw: st.DrawFn, limit: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    numbers = st.floats(-limit, limit, width=32)
    flat = draw(st.lists(numbers, min_size=2 * rows * vocabulary, max_size=2 * rows * vocabulary))
    both = torch.tensor(flat, dtype=FLOAT).reshape(2, rows, vocabulary)
    return both[0], both[1]


@pytest.mark.parametrize(("name", "options"), DIVERGENCES)
@given(both_logits(), st.integers(1, 8), st.sampled_from([1.0, 2.0, 0.5]))
@quick
def test_never_negative(name: str, options: dict, both: tuple[torch.Tensor, torch.Tensor], k: int, t: float) -> None:
    teacher, student = both
    k = min(k, teacher.shape[1])
    for targets in (dense(teacher), top_k(teacher, k, temperatures=(2.0, 0.5))):
        for tail in ("bucket", "renormalize"):
            values = row_values(student, targets, [term(name, tail=tail, temperature=t, **options)])
            assert values.min() >= -1e-9


@pytest.mark.parametrize(("name", "options"), F_DIVERGENCES)
@given(both_logits(limit=7), st.integers(1, 7))  # a tail far below the rounding of the mass is only roughly known
@quick
def test_a_bucket_never_raises_the_divergence(name: str, options: dict, both: tuple, k: int) -> None:
    """Data-processing inequality, and a larger k comes closer."""
    teacher, student = both
    assume(k < teacher.shape[1])
    terms = [term(name, **options)]
    full = row_values(student, dense(teacher), terms)
    smaller, larger = (row_values(student, top_k(teacher, kept), terms) for kept in (k, k + 1))
    assert (smaller <= larger + 1e-9).all()
    assert (larger <= full + 1e-9).all()


@pytest.mark.parametrize(("name", "options"), DIVERGENCES)
@given(both_logits(), st.sampled_from([1.0, 2.0, 0.25]))
@quick
def test_all_ids_kept_equal_dense(name: str, options: dict, both: tuple, temperature: float) -> None:
    teacher, student = both
    # Equal probabilities have no order, and adaptive_kl jumps where the head's mass is exactly a half.
    teacher = teacher + 1e-3 * torch.arange(teacher.shape[1])
    terms = [term(name, temperature=temperature, **options)]
    kept = row_values(student, top_k(teacher, teacher.shape[1], temperatures=(2.0, 0.25)), terms)
    torch.testing.assert_close(kept, row_values(student, dense(teacher), terms), rtol=1e-6, atol=1e-9)


@given(both_logits(), st.floats(0.01, 0.99))
@quick
def test_jsd_is_bounded(both: tuple[torch.Tensor, torch.Tensor], beta: float) -> None:
    teacher, student = both
    values = row_values(student, dense(teacher), [term("jsd"), term("jsd", beta=beta), term("total_variation")])
    assert values[0].max() <= math.log(2) + 1e-12
    assert values[1].max() <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12
    assert values[2].max() <= 1 + 1e-12


@given(both_logits(), st.floats(-50, 50))
@quick
def test_a_constant_on_the_logits_changes_nothing(both: tuple, constant: float) -> None:
    teacher, student = both
    terms = [term(name, **options) for name, options in DIVERGENCES]
    found = row_values(student + constant, dense(teacher - constant), terms)
    torch.testing.assert_close(found, row_values(student, dense(teacher), terms), rtol=1e-6, atol=1e-9)


@given(both_logits(), st.integers(1, 3))
@quick
def test_ids_beyond_both_vocabularies_change_nothing(both: tuple[torch.Tensor, torch.Tensor], width: int) -> None:
    teacher, student = both
    teacher = teacher + 1e-3 * torch.arange(teacher.shape[1])  # equal probabilities have no order
    terms = [term(name, **options) for name, options in DIVERGENCES]
    wide = [torch.nn.functional.pad(side, (0, width), value=-torch.inf) for side in (teacher, student)]
    for make in (dense, lambda logits: top_k(logits, 2)):
        torch.testing.assert_close(
            row_values(wide[1], make(wide[0]), terms), row_values(student, make(teacher), terms), rtol=1e-6, atol=1e-9
        )


@given(both_logits(), st.lists(st.integers(0, 3), max_size=3))
@quick
def test_any_split_of_the_rows_adds_up(both: tuple[torch.Tensor, torch.Tensor], cuts: list[int]) -> None:
    teacher, student = both
    targets, terms = top_k(teacher, 2), [term("forward_kl"), term("jsd"), term("sequence_ce")]
    edges = sorted({0, len(teacher), *(min(cut, len(teacher)) for cut in cuts)})
    parts = [row_sums(student[a:b], targets.rows(a, b), terms) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(torch.stack(parts).sum(0), row_sums(student, targets, terms))
