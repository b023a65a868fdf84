import itertools

import pytest

from llmdistill.trainer.schedule import learning_rate_factor


def test_climbs_then_falls_to_the_minimum() -> None:
    factors = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.2)
    assert factors[54] + factors[55] == pytest.approx(1.2, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs(total: int) -> None:
    assert all(0 < learning_rate_factor(step, total, 0.05, 0.1) <= 1 for step in range(total))
