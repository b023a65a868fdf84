from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.cache.growing import GrowingCache
from llmdistill.cache.index import write_index
from llmdistill.cache.order import plan_steps
from llmdistill.cache.prefetch import prefetch
from llmdistill.cache.reader import CacheReader
from llmdistill.errors import DataError

Built = Callable[..., Any]


def test_numbers_do_not_depend_on_who_wrote_what(tmp_path: Path, make: Any) -> None:
    spec = make.spec()
    records = make.records(spec, 20)
    make.cache(tmp_path / "a", records, spec, per_shard=3)
    make.cache(tmp_path / "b", records[::-1], spec, per_shard=7)
    a, b = CacheReader(tmp_path / "a"), CacheReader(tmp_path / "b")
    assert a.keys == b.keys
    assert a.token_counts.tolist() == b.token_counts.tolist()
    assert all(a.read(i).token_ids_N.tolist() == b.read(i).token_ids_N.tolist() for i in range(20))


def test_the_held_out_split_is_by_prompt(small_cache: Built) -> None:
    cache, records, _ = small_cache()
    training, held_out = CacheReader(cache).split(0.3)
    assert len(training) + len(held_out) == 12
    by_key = {record.key: record.split for record in records}
    reader = CacheReader(cache)
    assert all(by_key[reader.keys[number]] < 0.3 * 2**64 for number in held_out)
    assert all(by_key[reader.keys[number]] >= 0.3 * 2**64 for number in training)


def test_token_ids_survive_as_they_are(tmp_path: Path, make: Any) -> None:  # cases V4, V8
    spec = make.spec()
    records = make.records(spec, 1)
    ids = np.array([0, 260, 73, 259, 261], np.int32)  # one BOS, and a spelling no tokenizer would choose
    supervised = np.array([False, False, True, True, True])
    record = type(records[0])(bytes(16), ids, supervised, make.rows(spec, 3, np.random.default_rng(0)), "stop")
    make.cache(tmp_path, [record], spec)
    assert CacheReader(tmp_path).read(0).token_ids_N.tolist() == ids.tolist()


def test_threads_may_share_a_reader(small_cache: Built) -> None:
    cache, _, _ = small_cache(count=40)
    reader = CacheReader(cache)
    expected = [reader.read(i).token_ids_N.tolist() for i in range(40)]
    faults: list[int] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 40, 300).tolist():
            if reader.read(number).token_ids_N.tolist() != expected[number]:
                faults.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_open_files_are_bounded(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmdistill.cache import reader as module

    monkeypatch.setattr(module, "_OPEN_SHARDS", 20)
    spec = make.spec()
    make.cache(tmp_path, make.records(spec, 60), spec, per_shard=1)
    reader = CacheReader(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(60):
        reader.read(number)
    assert len(os.listdir("/proc/self/fd")) - before <= 22


def test_prefetch_keeps_order_and_budget() -> None:
    lock, held, most = threading.Lock(), [0], [0]

    def load(job: int) -> int:
        with lock:
            held[0] += 10
            most[0] = max(most[0], held[0])
        time.sleep(0.001 * (job % 3))
        return job

    found = []
    for item in prefetch(range(50), load, lambda job: 10, budget=40, workers=4):
        time.sleep(0.001)
        found.append(item)
        held[0] -= 10
    assert found == list(range(50))
    assert 20 <= most[0] <= 40


def test_prefetch_loads_what_is_larger_than_the_budget_and_passes_errors_on() -> None:
    assert list(prefetch([1, 2], lambda job: job, lambda job: 100, budget=1)) == [1, 2]

    def load(job: int) -> int:
        if job == 2:
            raise DataError("broken")
        return job

    found = prefetch(range(5), load, lambda job: 1, budget=3)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(DataError, match="broken"):
        next(found)


def test_a_growing_cache_gives_every_record_once_and_resumes(tmp_path: Path, make: Any) -> None:
    spec = make.spec()
    records = make.records(spec, 24)
    make.cache(tmp_path, records[:8], spec)
    growing = GrowingCache(tmp_path)
    readers = growing.readers(poll_seconds=0.01)
    seen = list(next(readers).keys)
    make.cache(tmp_path, records[8:16], spec)
    second = next(readers)
    seen += list(second.keys)
    state = json.loads(json.dumps(growing.segments))

    def finish() -> None:
        time.sleep(0.1)
        make.cache(tmp_path, records[16:], spec)
        write_index(tmp_path)

    thread = threading.Thread(target=finish)
    thread.start()
    seen += [key for reader in readers for key in reader.keys]
    thread.join()
    assert sorted(seen) == sorted(record.key for record in records)
    resumed = GrowingCache(tmp_path, state).readers(poll_seconds=0.01)
    assert len(next(resumed)) == 8
    again = next(resumed)
    assert again.keys == second.keys
    plans = [plan_steps(reader.token_counts, np.arange(8), 1, 0, 64, 2).records.tolist() for reader in (second, again)]
    assert plans[0] == plans[1]
    assert sum(len(reader) for reader in resumed) == 8


def test_a_cache_that_does_not_grow_is_an_error(small_cache: Built) -> None:
    cache, _, _ = small_cache()
    readers = GrowingCache(cache).readers(poll_seconds=0.01, timeout_seconds=0.05)
    assert len(next(readers)) == 12
    with pytest.raises(DataError, match="no new shard"):
        next(readers)


SPARSE = """
import resource, sys
from pathlib import Path
import numpy as np
from benchmarks.cache import sparse_cache
from llmdistill.cache.reader import CacheReader
reader = CacheReader(Path(sys.argv[1]))
order = np.random.default_rng(0).permutation(len(reader))[:1500]
rows = sum(len(reader.read(int(number)).rows) for number in order)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, rows)
"""


def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:  # case T11
    """Peak resident memory on sparse caches of 0.2 and 20 GB, read in a process of its own."""
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root))
    from benchmarks.cache import sparse_cache

    peaks = {}
    for size in (200 << 20, 20 << 30):
        folder = tmp_path / str(size)
        assert sparse_cache(folder, size) >= size
        done = subprocess.run(
            [sys.executable, "-c", SPARSE, str(folder)], cwd=root, capture_output=True, text=True, check=True
        )
        peaks[size] = int(done.stdout.split()[0])
        assert int(done.stdout.split()[1]) > 0
    small, large = peaks.values()
    assert large < 1024
    assert large - small < 200
