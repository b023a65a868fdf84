"""Who gets which unit, and how the guilty request is found, without any process."""

import random

import pytest

from llmdistill.teacher.dispatch import Dispatcher, Unit
from llmdistill.types import Request


def requests(count: int) -> list[Request]:
    return [Request(n.to_bytes(16, "big"), (1,) * (1 + n % 7), f"a:{n}", seed=n) for n in range(count)]


def numbers(units: list[Unit]) -> list[int]:
    return sorted(request.seed or 0 for unit in units for request in unit.requests)


def test_units_go_out_longest_first_and_no_more_than_the_limit() -> None:
    asked = [Request(bytes(16), (1,) * length, "a") for length in (2, 9, 5, 7)]
    dispatcher = Dispatcher(asked, 1)
    taken = [dispatcher.take(0, 2), dispatcher.take(0, 2), dispatcher.take(0, 2)]
    assert [unit and unit.tokens for unit in taken] == [9, 7, None]
    assert dispatcher.flying(0) == 2


def test_a_suspect_flies_alone() -> None:
    dispatcher = Dispatcher(requests(8), 2)
    for _ in range(2):
        dispatcher.take(0, 2)
    other = dispatcher.take(1, 2)
    assert not list(dispatcher.died(0))
    suspect = dispatcher.take(0, 2)
    assert suspect is not None and suspect.deaths == 1
    assert dispatcher.take(0, 2) is None, "nothing joins a suspect"
    fresh = dispatcher.take(1, 2)
    assert fresh is not None and fresh.deaths == 0, "a replica that has work is not held up by suspects"
    assert other is not None
    dispatcher.finished(0, suspect)
    assert dispatcher.deaths_in_a_row == 0


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(5))
def test_guilty_requests_are_found_and_every_other_one_is_finished_once(size: int, seed: int) -> None:
    """Replicas that die of guilty requests, at random moments; the first death of each unit takes others with it."""
    generator = random.Random(seed)
    asked = requests(60)
    guilty = set(generator.sample(range(60), 3))
    dispatcher = Dispatcher(asked, size)
    flying: dict[int, list[Unit]] = {0: [], 1: [], 2: []}
    finished: list[Unit] = []
    given_up: list[int] = []
    while dispatcher.busy():
        replica = generator.randrange(3)
        while unit := dispatcher.take(replica, 3):
            flying[replica].append(unit)
        if not flying[replica]:
            continue
        unit = generator.choice(flying[replica])
        if guilty & set(numbers([unit])):
            flying[replica] = []
            given_up += [request.seed or 0 for request in dispatcher.died(replica)]
        else:
            flying[replica].remove(unit)
            dispatcher.finished(replica, unit)
            finished.append(unit)
        assert dispatcher.deaths_in_a_row <= 3 * dispatcher.deaths_allowed
    assert set(given_up) == guilty and len(given_up) == 3
    assert numbers(finished) == sorted(set(range(60)) - guilty)


def test_the_search_for_one_request_stays_within_the_deaths_allowed() -> None:
    dispatcher = Dispatcher(requests(16), 16)
    deaths = 0
    while dispatcher.busy():
        unit = dispatcher.take(0, 4)
        assert unit is not None
        if 11 in numbers([unit]):
            list(dispatcher.died(0))
            deaths = max(deaths, dispatcher.deaths_in_a_row)
        else:
            dispatcher.finished(0, unit)
    assert deaths <= dispatcher.deaths_allowed == 8


def test_units_of_a_lost_node_are_no_suspects() -> None:
    dispatcher = Dispatcher(requests(8), 2)
    taken = [dispatcher.take(0, 2), dispatcher.take(0, 2)]
    dispatcher.returned(0)
    assert dispatcher.deaths_in_a_row == 0
    again = [dispatcher.take(1, 9) for _ in range(4)]
    assert set(map(id, taken)) <= set(map(id, again))
    assert all(unit is not None and unit.deaths == 0 for unit in again)
