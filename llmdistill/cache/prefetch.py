"""Reading ahead within a budget of bytes, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Job = TypeVar("_Job")
_Item = TypeVar("_Item")


def prefetch(
    jobs: Iterable[_Job],
    load: Callable[[_Job], _Item],
    size: Callable[[_Job], int],
    budget: int,
    workers: int = 2,
) -> Iterator[_Item]:
    """load(job) for every job, in their order, computed ahead by threads.

    Args:
        jobs: what to load; read no further than the budget allows.
        load: called in a thread; what it raises is raised here, in its turn.
        size: bytes that the loaded job will hold, known before it is loaded.
        budget: bytes that loaded and loading items may hold together, the one being consumed included. One item is
            always loaded, even if it alone is larger.
        workers: threads.
    """
    waiting: deque[tuple[int, Future[_Item]]] = deque()
    queue = iter(jobs)
    upcoming = next(queue, None)
    held = consumed = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        try:
            while waiting or upcoming is not None:
                while upcoming is not None:
                    bytes_ = size(upcoming)
                    if waiting and held + consumed + bytes_ > budget:
                        break
                    waiting.append((bytes_, pool.submit(load, upcoming)))
                    held += bytes_
                    upcoming = next(queue, None)
                bytes_, future = waiting.popleft()
                item = future.result()
                held, consumed = held - bytes_, bytes_
                yield item
                del item
        finally:
            for _, future in waiting:
                future.cancel()
