import pytest
from pydantic import TypeAdapter

from llmdistill.config.objectives import AnyObjective
from llmdistill.objectives.balance import balanced_factors
from llmdistill.objectives.schedule import Schedule
from llmdistill.objectives.terms import make_terms


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("linear", 0.0, 2.0),
        ("linear", 0.25, 3.0),
        ("linear", 0.5, 4.0),
        ("linear", 1.0, 4.0),
        ("cosine", 0.0, 2.0),
        ("cosine", 0.125, 2.2928932),  # 2 + 2 · ½ (1 - cos 45°)
        ("cosine", 0.25, 3.0),
        ("cosine", 0.5, 4.0),
        ("constant", 0.0, 4.0),
        ("constant", 0.7, 4.0),
    ],
)
def test_shapes(shape: str, progress: float, expected: float) -> None:
    assert Schedule(2.0, 4.0, shape, until=0.5).at(progress) == pytest.approx(expected)


def test_a_weight_follows_its_schedule() -> None:
    objective = TypeAdapter(AnyObjective).validate_python(
        {"type": "sequence_ce", "weight": 0.5, "schedule": {"shape": "linear", "start": 1.0, "end": 0.0}}
    )
    assert [make_terms([objective], at)[0].weight for at in (0.0, 0.5, 1.0)] == [0.5, 0.25, 0.0]


def test_balanced_terms_pull_in_the_ratio_of_their_weights() -> None:
    weights, norms = {"a": 1.0, "b": 3.0, "c": 1.0}, {"a": 2.0, "b": 0.5, "c": 0.0}
    factors = balanced_factors(norms, weights)
    pulls = {name: weights[name] * factors[name] * norms[name] for name in weights}
    assert pulls["b"] == pytest.approx(3 * pulls["a"])
    assert pulls["a"] + pulls["b"] == pytest.approx(1.0 * 2.0 + 3.0 * 0.5)
    assert factors["c"] == 1.0


def test_a_term_with_nothing_left_to_teach_does_not_take_over() -> None:
    assert balanced_factors({"a": 1.0, "b": 1e-9}, {"a": 1.0, "b": 1.0}, limit=5.0)["b"] == 5.0
