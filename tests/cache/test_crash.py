"""kill -9 at random points of writing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmdistill.cache.diff import diff
from llmdistill.cache.index import committed_keys, write_index
from llmdistill.cache.reader import CacheReader
from llmdistill.cache.verify import verify

KILLS = 50
# One process pays for the imports; each attempt is a fork of it. It is reaped only when told, so that its id stays its
# own until the kill, also where it finished first.
WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import Make
from llmdistill.cache.index import committed_keys
spec = Make.spec()
records = Make.records(spec, 400)
for line in sys.stdin:
    cache = Path(line.strip())
    child = os.fork()
    if child == 0:
        done = committed_keys(cache, spec)
        Make.cache(cache, [record for record in records if record.key not in done], spec, per_shard=2)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def attempt(parent: subprocess.Popen[str], cache: Path, seconds: float | None) -> bool:
    """Whether one writing of the cache finished; it is killed after so many seconds, if any."""
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(f"{cache}\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline())
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    parent.stdin.write("reap\n")
    parent.stdin.flush()
    exit_code = int(parent.stdout.readline())
    assert exit_code in (0, -signal.SIGKILL)
    return exit_code == 0


def test_fifty_kills_lose_and_duplicate_nothing(tmp_path: Path, make: Any) -> None:  # case T1
    spec = make.spec()
    records = make.records(spec, 400)
    make.cache(tmp_path / "whole", records, spec)
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    chance, kills, caches = random.Random(0), 0, 0
    while kills < KILLS:  # a fast machine fills more than one cache on the way
        caches += 1
        cache, before, finished = tmp_path / f"cache-{caches}", 0, False
        while not finished:
            finished = attempt(parent, cache, chance.uniform(0, 0.01) if kills < KILLS else None)
            kills += not finished
            done = len(list((cache / "shards").glob("*.safetensors")))
            assert done >= before, "a committed shard is gone"
            before = done
            if done:
                assert len(CacheReader(cache)) == 2 * done
        assert committed_keys(cache, spec) == {record.key for record in records}
        write_index(cache)
        assert not verify(cache).findings
        assert not list((cache / "shards").glob(".*"))
        assert diff(cache, tmp_path / "whole")["equal"]
    assert parent.stdin is not None
    parent.stdin.close()
    parent.wait()
