"""The window of requests follows the server: up while that brings answers, down when it is too much."""

import heapq

import pytest

from recaption.window import Window


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(window: Window, clock: Clock, seconds: float, most_at_once: int, latency: float = 0.2) -> int:
    """Answers that a server gives which works on `most_at_once` requests and lets the others queue."""
    ends: list[float] = []  # of requests under way, in a server that takes them in order
    free = [clock.now] * most_at_once  # when each of its places is free
    heapq.heapify(free)
    stop, answers = clock.now + seconds, 0
    while clock.now < stop:
        while len(ends) < window.limit:
            end = max(heapq.heappop(free), clock.now) + latency
            heapq.heappush(free, end)
            heapq.heappush(ends, end)
        clock.now = heapq.heappop(ends)
        window.answered(len(ends) + 1)
        answers += 1
    return answers


def test_it_grows_to_its_most_where_every_request_is_worked_on_at_once() -> None:
    clock = Clock()
    window = Window(256, clock=clock)
    answers = run(window, clock, 15.6, most_at_once=10_000)
    assert window.limit == 256
    assert answers >= 0.97 * 256 / 0.2 * 15.6  # the slow start included


@pytest.mark.parametrize("places", [8, 40, 100, 200])
def test_it_stops_growing_where_requests_only_queue(places: int) -> None:
    clock = Clock()
    window = Window(1024, clock=clock)
    run(window, clock, 10.0, places)
    answers = run(window, clock, 30.0, places)
    assert answers >= 0.95 * places / 0.2 * 30.0
    assert window.limit <= max(256, 2 * places)  # of 1,024: answers of this server come in clumps, which look like more


def test_it_grows_again_when_the_server_has_more_places() -> None:
    clock = Clock()
    window = Window(512, clock=clock)
    run(window, clock, 20.0, most_at_once=64)
    run(window, clock, 60.0, most_at_once=10_000)
    assert window.limit > 300


def test_a_burst_of_refusals_halves_it_once() -> None:
    clock = Clock()
    window = Window(64, clock=clock)
    for _ in range(30):
        window.refused(sent=clock.now - 0.1)
        clock.now += 0.001
    assert window.limit == 32
    clock.now += 1.0
    window.refused(sent=clock.now - 0.1)
    assert window.limit == 16


def test_it_never_closes() -> None:
    clock = Clock()
    window = Window(8, clock=clock)
    for _ in range(20):
        clock.now += 1.0
        window.refused(clock.now)
    assert window.limit == 1
    run(window, clock, 60.0, most_at_once=100)
    assert window.limit == 8
