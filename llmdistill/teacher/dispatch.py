"""Which replica does which work unit, and what the deaths of engines say about units. Knows nothing of Ray.

Units are given out longest first, so that the last ones to end are short. An engine that dies gives its units back, and
they are suspects from then on: a suspect is given to a replica that has nothing else, so that the next death is its
own doing. A suspect whose engine dies again is split in two, until a single request is left; a request that kills the
engine twice alone is quarantined.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmdistill.types import Request


@dataclass(eq=False)
class Unit:
    """Requests that are answered and written together."""

    requests: Sequence[Request]
    deaths: int = 0
    """Engines that died while they had it."""

    @property
    def tokens(self) -> int:
        """Prompt tokens, as a measure of work."""
        return sum(len(request.token_ids) for request in self.requests)


class Dispatcher:
    """Keeps every request in exactly one place: waiting, in flight, finished or quarantined.

    Args:
        requests: what is to be done.
        size: requests in a unit.

    """

    def __init__(self, requests: Sequence[Request], size: int) -> None:
        units = [Unit(part) for part in _units(requests, size)]
        self._fresh = deque(sorted(units, key=lambda unit: -unit.tokens))
        self._suspects: deque[Unit] = deque()
        self._flying: defaultdict[int, list[Unit]] = defaultdict(list)
        self._size = size
        self.deaths_in_a_row = 0
        """Engines that died since the last unit was finished."""

    @property
    def deaths_allowed(self) -> int:
        """Deaths in a row that the search for one guilty request can take; more mean that the engine is broken."""
        return 4 + math.ceil(math.log2(self._size))

    def busy(self) -> bool:
        """Is anything waiting or in flight?"""
        return bool(self._fresh or self._suspects or any(self._flying.values()))

    def waiting(self) -> int:
        """Units that nobody has."""
        return len(self._fresh) + len(self._suspects)

    def flying(self, replica: int | None = None) -> int:
        """Units in flight, of one replica or of all."""
        return sum(map(len, self._flying.values())) if replica is None else len(self._flying[replica])

    def take(self, replica: int, limit: int) -> Unit | None:
        """The next unit for a replica that may hold `limit` at once, or nothing for now."""
        held = self._flying[replica]
        if any(unit.deaths for unit in held):
            return None
        if self._suspects and not held:
            unit = self._suspects.popleft()
        elif self._fresh and len(held) < limit:
            unit = self._fresh.popleft()
        else:
            return None
        held.append(unit)
        return unit

    def finished(self, replica: int, unit: Unit) -> None:
        """The unit is committed."""
        self._flying[replica].remove(unit)
        self.deaths_in_a_row = 0

    def returned(self, replica: int) -> None:
        """The replica is gone through no fault of its units: a node that was taken away."""
        units = self._flying.pop(replica, [])
        self._suspects.extendleft(unit for unit in units if unit.deaths)
        self._fresh.extendleft(unit for unit in units if not unit.deaths)

    def died(self, replica: int) -> Iterable[Request]:
        """The replica's engine died.

        Returns:
            requests that are given up.

        """
        self.deaths_in_a_row += 1
        units = self._flying.pop(replica, [])
        for unit in units:
            unit.deaths += 1
            # A lone request had its first death alone as part of a split unit, hence three.
            if len(units) > 1 or unit.deaths < 2 or (len(unit.requests) == 1 and unit.deaths < 3):
                self._suspects.append(unit)
            elif len(unit.requests) == 1:
                return unit.requests
            else:
                middle = len(unit.requests) // 2
                halves = (unit.requests[:middle], unit.requests[middle:])
                self._suspects.extendleft(Unit(half, deaths=1) for half in halves)
        return ()


def _units(requests: Sequence[Request], size: int) -> Iterable[Sequence[Request]]:
    """Parts of `size` requests, or a few more: the samples of a prompt follow each other and stay together."""
    start = 0
    for end in range(1, len(requests) + 1):
        if end == len(requests) or (end - start >= size and requests[end].token_ids != requests[end - 1].token_ids):
            yield requests[start:end]
            start = end
