"""The steps of a round, and reading several caches as one."""

from pathlib import Path

import numpy as np
import pytest

from llmdistill.cache.joined import JoinedReader
from llmdistill.cache.reader import CacheReader
from llmdistill.config.rounds import RoundsConfig
from llmdistill.errors import DataError
from llmdistill.trainer.rounds import Round, plan_round, read_round, round_cache
from tests.helpers import SPEC, make_cache

LENGTH, PER_STEP = 64, 8


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    make_cache(tmp_path / "cache", records=40)
    for number, tokens in enumerate((20, 21, 22)):
        make_cache(round_cache(tmp_path / "rounds", number), records=30, tokens=tokens)
    return tmp_path


def plan(caches: Path, number: int, **settings: object):
    config = RoundsConfig.model_validate({"count": 3, "steps": 10, "prompts": 30, **settings})
    current = Round(config, number, caches / "rounds")
    reader = read_round(caches / "cache", current)
    return reader, plan_round(reader, current, np.arange(reader.starts[1]), 7, LENGTH, PER_STEP)


def owners(reader: JoinedReader, steps) -> np.ndarray:
    """[steps, sequences]: which cache each sequence is from."""
    return np.array(
        [
            [int(np.searchsorted(reader.starts, sequence[0], side="right")) - 1 for sequence in steps.step(number)]
            for number in range(len(steps))
        ]
    )


def test_joined_records_are_those_of_each_cache_in_turn(caches: Path) -> None:
    parts = [CacheReader(caches / "cache"), CacheReader(round_cache(caches / "rounds", 1))]
    joined = JoinedReader(parts)
    assert len(joined) == 70 and list(joined.starts) == [0, 40, 70]
    for number, (part, place) in {0: (0, 0), 39: (0, 39), 40: (1, 0), 69: (1, 29)}.items():
        assert joined.keys[number] == parts[part].keys[place] == joined.read(number).key
        assert joined.token_counts[number] == len(joined.read(number).token_ids_N)
    assert joined.sources[joined.source_numbers[69]] == parts[1].sources[parts[1].source_numbers[29]]


def test_caches_of_another_capture_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    make_cache(tmp_path / "a")
    make_cache(tmp_path / "b", spec=replace(SPEC, top_k=4))
    make_cache(tmp_path / "c", spec=replace(SPEC, mode="score", engine="vllm", sampling={}))
    readers = {name: CacheReader(tmp_path / name) for name in "abc"}
    JoinedReader([readers["a"], readers["c"]])
    with pytest.raises(DataError, match="top_k: 4 and 8"):
        JoinedReader([readers["a"], readers["b"]])


@pytest.mark.parametrize(
    ("on_policy", "shares"), [(0.0, (0, 0, 0)), (0.3, (0.3, 0.3, 0.3)), ([0.5, 1.0], (0.5, 0.75, 1.0))]
)
def test_the_share_of_the_students_text(caches: Path, on_policy: object, shares: tuple[float, ...]) -> None:
    for number, share in enumerate(shares):
        reader, steps = plan(caches, number, on_policy=on_policy)
        assert len(steps) == 10
        students = (owners(reader, steps) == 1).sum(axis=1)
        assert students.sum() == round(share * 10 * PER_STEP)
        assert abs(students - share * PER_STEP).max() < 1


def test_earlier_rounds_are_replayed_up_to_their_age(caches: Path) -> None:
    reader, steps = plan(caches, 2, on_policy=1.0, replay=0.25, max_age=1)
    found = np.bincount(owners(reader, steps).ravel(), minlength=3)
    assert list(found) == [0, 60, 20]
    lengths = {int(reader.token_counts[record]) for record in steps.records}
    assert lengths == {22, 21}, "round 0 is too old"
    reader, steps = plan(caches, 0, on_policy=1.0, replay=0.25)
    assert set(owners(reader, steps).ravel()) == {1}, "there is nothing to replay in the first round"


def test_the_teachers_text_goes_on_from_round_to_round(caches: Path) -> None:
    taken: list[bytes] = []
    for number in range(3):
        reader, steps = plan(caches, number, on_policy=0.5)
        teachers = [record for record in steps.records if record < reader.starts[1]]
        taken += [reader.keys[record] for record in teachers]
    counts = [taken.count(key) for key in set(taken)]
    assert len(counts) == 40 and max(counts) - min(counts) <= 1, "epoch after epoch, across the rounds"


def test_a_round_is_the_same_whenever_it_is_planned(caches: Path) -> None:
    first, second = (plan(caches, 1, on_policy=0.4, replay=0.3)[1] for _ in range(2))
    assert np.array_equal(first.records, second.records) and np.array_equal(first.bounds, second.bounds)


def test_a_round_without_text_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    make_cache(round_cache(tmp_path / "rounds", 0), tokens=6)
    with pytest.raises(DataError, match="the student's text of round 0 has no training record"):
        plan(tmp_path, 0, on_policy=0.5)
