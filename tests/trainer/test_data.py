import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from llmdistill.cache.index import shard_folder, write_index
from llmdistill.cache.order import plan_steps
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.shard import write_shard
from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.objectives.targets import WeightedTargets
from llmdistill.teacher.fake_engine import FakeEngine
from llmdistill.trainer.data import collate, read_ahead
from llmdistill.types import Request
from tests.helpers import SPEC, make_cache


def test_collated_rows_sit_one_slot_before_their_token(tmp_path: Path) -> None:
    made = {record.key: record for record in make_cache(tmp_path)}
    reader = CacheReader(tmp_path)
    batch = collate(reader, [(3, 1), (), (2,)], sequence_length=50)
    assert batch.token_ids_BT.shape == (3, 50)
    assert batch.tokens == 60
    records = [made[reader.keys[n]] for n in (3, 1, 2)]
    assert batch.token_ids_BT[0, :40].tolist() == [*records[0].token_ids_N, *records[1].token_ids_N]
    assert batch.positions_BT[0].tolist() == [*range(20), *range(20), *range(10)]
    flat = batch.token_ids_BT.flatten()
    assert flat[batch.row_slots_R + 1].tolist() == batch.actual_ids_R.tolist()
    assert batch.actual_ids_R.tolist() == [t for r in records for t in r.token_ids_N[r.supervised_N]]
    targets = batch.targets(1000)
    assert targets is not None
    assert targets.ids_RK.tolist() == [row for r in records for row in r.rows.ids_RK.tolist()]


def test_each_row_knows_whether_the_student_wrote_it(tmp_path: Path) -> None:
    made = {record.key: record for record in make_cache(tmp_path, by_student=5)}
    reader = CacheReader(tmp_path)
    batch = collate(reader, [(3, 1), (), (2, 5)], sequence_length=50)
    expected = [made[reader.keys[n]].source == "student:7" for n in (3, 1, 2, 5)]
    assert 0 < sum(expected) < 4
    assert batch.student_rows_R.tolist() == [value for value in expected for _ in range(14)]
    targets = batch.targets(1000)
    assert targets is not None and targets.student_rows_R is batch.student_rows_R


def test_a_batch_of_padding_has_no_targets(tmp_path: Path) -> None:
    make_cache(tmp_path)
    batch = collate(CacheReader(tmp_path), [()], 8)
    assert batch.targets(1000) is None
    assert batch.student_rows_R.tolist() == []
    assert batch.tokens == 0


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_cover_each_epoch_once_with_equal_steps(tmp_path: Path, num_ranks: int) -> None:
    make_cache(tmp_path, records=13)
    reader = CacheReader(tmp_path)
    plan = plan_steps(reader.token_counts, np.arange(13), 2, 0, sequence_length=45, sequences_per_step=4)
    seen, counts = [], []
    for rank in range(num_ranks):
        steps = list(read_ahead(reader, plan, 0, rank, num_ranks, 1, 45))
        counts.append([len(step.micro_batches) for step in steps])
        seen += [tuple(ids) for s in steps for b in s.micro_batches for ids in b.actual_ids_R.split(14) if len(ids)]
        assert all(step.global_rows == step.global_tokens // 20 * 14 for step in steps)
    assert all(count == counts[0] for count in counts)
    assert len(seen) == 26
    assert len({tuple(map(int, ids)) for ids in seen}) == 13


def test_resuming_at_a_step_gives_the_rest(tmp_path: Path) -> None:
    make_cache(tmp_path)
    reader = CacheReader(tmp_path)
    plan = plan_steps(reader.token_counts, np.arange(12), 3, 1, 45, 2)
    whole = list(read_ahead(reader, plan, 0, 0, 1, 2, 45))
    rest = list(read_ahead(reader, plan, 5, 0, 1, 2, 45))
    assert [step.number for step in rest] == [step.number for step in whole[5:]]
    for one, other in zip(rest, whole[5:], strict=True):
        assert torch.equal(one.micro_batches[0].token_ids_BT, other.micro_batches[0].token_ids_BT)


@pytest.mark.parametrize("kind", ["sampled", "head_tail"])
def test_drawn_entries_become_weights_that_sum_to_one(tmp_path: Path, kind: str) -> None:
    config = CaptureConfig(kind=kind)
    engine = FakeEngine(TeacherConfig(model="x"), config, 1000, 2)
    supervised = (False, *[True] * 9)
    requests = [Request(n.to_bytes(16, "big"), tuple(range(n, n + 10)), "a", supervised=supervised) for n in range(3)]
    records = [asyncio.run(engine.answer(request)) for request in requests]
    spec = dataclasses.replace(SPEC, **config.spec_fields())
    write_shard(shard_folder(tmp_path), records, spec, "fake-1")
    write_index(tmp_path)
    targets = collate(CacheReader(tmp_path), [(0, 1, 2)], 30).targets(1000)
    assert isinstance(targets, WeightedTargets)
    torch.testing.assert_close(targets.weights_RK.sum(1), torch.ones(27))
    assert targets.entropy_R is not None and targets.entropy_R.isfinite().all()
    assert (targets.head_counts_R is None) == (kind == "sampled")
