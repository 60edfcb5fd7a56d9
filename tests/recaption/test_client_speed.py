"""The client costs little more than the least that could ask the same; benchmarks.recaption prints the numbers."""

import statistics

from benchmarks.recaption import bare, ours, simulator

GOAL = 0.60  # of the bare loop's requests per CPU-second


def test_the_client_takes_little_more_cpu_than_a_bare_loop_of_its_library() -> None:
    messages = [f"Scene {n}." for n in range(1500)]
    with simulator(0.02) as address:
        ours(address, messages[:100])
        rounds = [(ours(address, messages)[1], bare(address, messages)[1]) for _ in range(5)]
    assert statistics.median(theirs / mine for mine, theirs in rounds) >= GOAL
