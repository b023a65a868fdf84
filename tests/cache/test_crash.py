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
WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import Make
from llmdistill.cache.index import committed_keys
spec = Make.spec()
records = Make.records(spec, 400)
cache = Path(sys.argv[2])
while True:
    line = sys.stdin.readline()
    if not line:
        break
    import os
    if os.fork() == 0:
        done = committed_keys(cache, spec)
        print(os.getpid(), flush=True)
        Make.cache(cache, [record for record in records if record.key not in done], spec, per_shard=2)
        print("done", flush=True)
        os._exit(0)
    os.wait()
"""


def test_fifty_kills_lose_and_duplicate_nothing(tmp_path: Path, make: Any) -> None:  # case T1
    spec = make.spec()
    records = make.records(spec, 400)
    cache, here = tmp_path / "cache", str(Path(__file__).parent)
    # One process pays for the imports; each attempt is a fork of it.
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, here, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    chance, kills, before = random.Random(0), 0, 0
    while True:
        parent.stdin.write("go\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        if kills == KILLS:
            assert parent.stdout.readline() == "done\n"
            break
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        kills += 1
        done = len(list((cache / "shards").glob("*.safetensors")))
        assert done >= before, "a committed shard is gone"
        before = done
        assert before < 200, "too fast: every record was written before the kills were used up"
        if done:
            assert len(CacheReader(cache)) == 2 * done
    parent.stdin.close()
    parent.wait()
    assert committed_keys(cache, spec) == {record.key for record in records}
    write_index(cache)
    assert not verify(cache).findings
    assert not list((cache / "shards").glob(".*"))
    make.cache(tmp_path / "whole", records, spec)
    assert diff(cache, tmp_path / "whole")["equal"]
