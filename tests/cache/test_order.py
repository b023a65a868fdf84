from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.cache.order import appearances, epoch_order, pack, plan_steps


def lengths_like_answers(count: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(5, 0.8, count), 4, 1024).astype(np.int32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_epochs_differ_and_repeat() -> None:  # case T14
    first, second = (epoch_order(1000, 1, epoch)[0] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).any()
    assert (first == epoch_order(1000, 1, 0)[0]).all()
    assert (first != epoch_order(1000, 2, 0)[0]).any()


def test_the_order_is_uniform() -> None:
    where = np.stack([np.argsort(epoch_order(8, seed, 0)[0]) for seed in range(4000)])
    counts = np.stack([np.bincount(where[:, record], minlength=8) for record in range(8)])
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_blocks_stay_together_in_windows() -> None:
    blocks = np.repeat(np.arange(20), 50)
    order, bounds = epoch_order(1000, 3, 0, blocks, blocks_per_window=4)
    assert sorted(order) == list(range(1000))
    assert len(bounds) == 6
    windows = [set(blocks[order[start:stop]].tolist()) for start, stop in itertools.pairwise(bounds)]
    assert all(len(window) == 4 for window in windows)
    assert (np.diff(blocks[order[:200]]) != 0).mean() > 0.5, "not shuffled within the window"
    assert windows != [set(range(start, start + 4)) for start in range(0, 20, 4)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=200), st.integers(40, 70_000), st.integers(0, 99))
def test_packing_keeps_every_record_and_fits(lengths: list[int], room: int, seed: int) -> None:
    values = np.array(lengths, np.int32)
    members, bounds = pack(values, room, np.random.default_rng(seed))
    assert sorted(members.tolist()) == list(range(len(lengths)))
    sums = [int(values[members[start:stop]].sum()) for start, stop in itertools.pairwise(bounds)]
    assert all(0 < total <= room for total in sums)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_packing_is_best_fit_decreasing(lengths: list[int]) -> None:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(12 - length)
    _, bounds = pack(np.array(lengths, np.int32), 12, rng())
    assert len(bounds) - 1 == len(rooms)


def test_packing_is_97_percent_full() -> None:
    lengths = lengths_like_answers(5000)
    _, bounds = pack(lengths, 2048, rng())
    assert lengths.sum() / (2048 * (len(bounds) - 1)) >= 0.97


@pytest.mark.parametrize("wrong", [0, 1025])
def test_a_record_that_does_not_fit_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"{wrong} tokens"):
        pack(np.array([5, wrong], np.int32), 1024, rng())


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 176])
def test_every_number_of_ranks_sees_the_same_steps(ranks: int) -> None:  # cases T3, Z4
    lengths = lengths_like_answers(700)
    plan = plan_steps(lengths, np.arange(700), 2, 5, 1024, 352)
    for step in range(len(plan)):
        batches = [plan.micro_batches(step, rank, ranks, 2) for rank in range(ranks)]
        assert len({len(batch) for batch in batches}) == 1, "ranks run another number of passes"
        assert len({tuple(map(len, batch)) for batch in batches}) == 1
        mine = sorted(members for batch in batches for micro in batch for members in micro)
        assert mine == sorted(plan.step(step))
        assert sorted(plan.step_records(step).tolist()) == sorted(record for members in mine for record in members)


def test_a_resumed_run_on_other_ranks_sees_each_record_once() -> None:
    lengths = lengths_like_answers(500)
    plan = plan_steps(lengths, np.arange(500), 3, 5, 1024, 8)
    seen: list[int] = []
    for step in range(len(plan)):
        ranks = 4 if step < len(plan) // 2 else 2
        for rank in range(ranks):
            seen += [
                record for micro in plan.micro_batches(step, rank, ranks, 1) for members in micro for record in members
            ]
    assert np.bincount(seen).tolist() == [3] * 500


def test_only_the_asked_records_are_planned() -> None:
    lengths = lengths_like_answers(100)
    records = np.arange(0, 100, 3)
    plan = plan_steps(lengths, records, 1, 0, 1024, 4)
    assert sorted(plan.records.tolist()) == records.tolist()
    assert len(plan_steps(lengths, records[:0], 2, 0, 1024, 4)) == 0


@given(st.floats(0, 3), st.integers(0, 5))
def test_weights_even_out_over_epochs(weight: float, seed: int) -> None:
    records, total = np.arange(10, 60), np.zeros(60, int)
    for epoch in range(4):
        epoch_records = appearances(records, np.full(50, weight), seed, epoch)
        total += np.bincount(epoch_records, minlength=60)
        assert (np.abs(total[10:] - weight * (epoch + 1)) < 1 + 1e-9).all()
    assert not total[:10].any()


def test_weights_per_source_shape_the_plan() -> None:
    lengths = lengths_like_answers(200)
    weights = np.where(np.arange(200) < 100, 2.0, 0.5)
    plan = plan_steps(lengths, np.arange(200), 2, 0, 1024, 4, weights=weights)
    assert np.bincount(plan.records)[:100].tolist() == [4] * 100
    assert np.bincount(plan.records)[100:].tolist() == [1] * 100
    with pytest.raises(ValueError, match="at least 0"):
        plan_steps(lengths, np.arange(200), 1, 0, 1024, 4, weights=-weights)


def test_windows_of_shards_bound_what_a_step_touches() -> None:
    lengths, blocks = np.full(6400, 100, np.int32), np.arange(6400) // 100
    plan = plan_steps(lengths, np.arange(6400), 1, 0, 1000, 10, blocks=blocks, blocks_per_window=8)
    touched = [len(set(blocks[plan.step_records(step)].tolist())) for step in range(len(plan))]
    assert max(touched) <= 8


def test_a_million_records_are_planned_in_seconds() -> None:
    import time

    started = time.monotonic()
    plan = plan_steps(lengths_like_answers(1_000_000), np.arange(1_000_000), 1, 0, 4096, 1024)
    assert time.monotonic() - started < 20
    assert np.bincount(plan.records).tolist() == [1] * 1_000_000
