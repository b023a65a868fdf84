import numpy as np
import pytest

from llmdistill.cache.order import epoch_order, pack, plan_steps


def test_epochs_differ_and_repeat() -> None:
    first, second = epoch_order(100, 1, 0), epoch_order(100, 1, 1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(100, 1, 0))
    assert not np.array_equal(first, epoch_order(100, 2, 0))


def test_packing_is_complete_and_tight() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 3000)
    sequences = pack(lengths, epoch_order(3000, 0, 0), 1024)
    assert sorted(record for members in sequences for record in members) == list(range(3000))
    filled = np.array([lengths[members].sum() for members in sequences])
    assert filled.max() <= 1024
    assert filled.sum() / (1024 * len(sequences)) > 0.97


def test_a_record_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="record 1 has 30 tokens"):
        pack(np.array([3, 30]), np.arange(2), 20)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_rank_has_equally_many_micro_batches(num_ranks: int) -> None:
    plan = plan_steps(np.full(10, 10), np.arange(10), 1, 0, 20, sequences_per_step=4)
    assert len(plan) == 2
    seen = []
    for step in range(len(plan)):
        per_rank = [plan.micro_batches(step, rank, num_ranks, 1) for rank in range(num_ranks)]
        assert {len(batches) for batches in per_rank} == {4 // num_ranks}
        seen += [record for batches in per_rank for batch in batches for members in batch for record in members]
    assert sorted(seen) == list(range(10))
