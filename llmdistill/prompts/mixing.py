"""The order of rows: shuffling within a source, mixing of sources. Pure functions of the rows, seeds and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def shuffled(rows: Iterator[_T], seed: int, buffer_size: int) -> Iterator[_T]:
    """The rows in another order: each leaves at random a buffer that is kept full, and then emptied in random order."""
    generator = np.random.default_rng(seed)
    buffer: list[_T] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(generator.integers(buffer_size))
        buffer[place], row = row, buffer[place]
        yield row
    for place in generator.permutation(len(buffer)):
        yield buffer[place]


def mixed(sources: Sequence[Iterator[_T]], weights: Sequence[float]) -> Iterator[_T]:
    """Rows in the proportions of `weights`, until the source whose turn it is has no more.

    After n rows each source has given n · weight / Σ weights of them, to within one.
    """
    taken = np.zeros(len(sources))
    share = np.asarray(weights, dtype=np.float64)
    while True:
        # The source that would be the least ahead of its share; the first of equals.
        turn = int(np.argmin((taken + 1) / share))
        row = next(sources[turn], None)
        if row is None:
            return
        taken[turn] += 1
        yield row
