"""A simulated cluster: what follows from its rules whatever the numbers are."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.plan.failures import HOUR, NodeFailures
from flows.plan.simulation import Cluster, Simulation, Spent, Training
from pipelines.errors import ConfigurationError

nodes = st.integers(1, 8)
seeds = st.integers(0, 1000)
mtbfs = st.floats(2, 200)
guards = st.builds(
    Training,
    checkpoint_every=st.floats(60, 3600),
    checkpoint_seconds=st.floats(0, 60),
    restart_seconds=st.floats(0, 600),
)
QUICK = settings(max_examples=60, deadline=None)


def parts(spent: Spent) -> float:
    return spent.work + spent.lost + spent.replaced + spent.restarts + spent.checkpoints + spent.idle


@QUICK
@given(nodes, st.integers(1, 40), st.floats(0.1, 100))
def test_without_failures_a_data_step_takes_its_work_over_its_nodes(count: int, rounds: int, seconds: float) -> None:
    spent = Simulation(Cluster(count, None)).shards(rounds * count, seconds)
    assert spent.wall == pytest.approx(spent.work / count) == pytest.approx(rounds * seconds)
    assert spent.failures == spent.lost == spent.replaced == 0 and spent.idle == pytest.approx(0, abs=1e-6)


@QUICK
@given(nodes, st.integers(1, 200), st.floats(0.1, 100))
def test_shards_that_do_not_come_out_even_leave_nodes_idle_for_less_than_a_shard(
    count: int, shards: int, seconds: float
) -> None:
    spent = Simulation(Cluster(count, None)).shards(shards, seconds)
    assert spent.work / count <= spent.wall + 1e-6 and spent.wall < spent.work / count + seconds + 1e-6
    assert spent.wall == pytest.approx(-(-shards // count) * seconds)


@QUICK
@given(nodes, st.floats(100, 1e6), guards)
def test_without_failures_training_takes_its_time_and_what_guards_it(
    count: int, seconds: float, guard: Training
) -> None:
    bare = Simulation(Cluster(count, None)).training(seconds, Training(guard.checkpoint_every, 0, 0))
    assert bare.wall == pytest.approx(bare.work / count) == pytest.approx(seconds)
    spent = Simulation(Cluster(count, None)).training(seconds, guard)
    assert spent.wall * count == pytest.approx(parts(spent)) and spent.restarts == count * guard.restart_seconds


@QUICK
@given(nodes, seeds, mtbfs, mtbfs, st.floats(3600, 1e6), guards)
def test_training_with_more_failures_is_never_faster(
    count: int, seed: int, one: float, other: float, seconds: float, guard: Training
) -> None:
    """The rarer failures of one seed are among its more frequent ones, so this holds run by run."""
    rare, often = (
        Simulation(Cluster(count, count * mtbf, seed=seed)).training(seconds, guard)
        for mtbf in (max(one, other), min(one, other))
    )
    assert often.wall >= rare.wall - 1e-6 >= seconds - 2e-6


@QUICK
@given(nodes, seeds, mtbfs, st.integers(1, 200), st.floats(60, 3600))
def test_a_data_step_with_failures_is_never_faster_than_without(
    count: int, seed: int, mtbf: float, shards: int, seconds: float
) -> None:
    spent = Simulation(Cluster(count, mtbf, seed=seed)).shards(shards, seconds)
    assert spent.wall >= Simulation(Cluster(count, None)).shards(shards, seconds).wall - 1e-6


def test_data_steps_with_more_failures_are_slower_on_average() -> None:
    """Of single seeds this may fail: a shard lost early is tried again early, and the last shard decides."""
    means = [
        sum(Simulation(Cluster(6, mtbf, seed=seed)).shards(120, 1800.0).wall for seed in range(40)) / 40
        for mtbf in (None, 200.0, 50.0, 20.0, 8.0, 4.0)
    ]
    assert means == sorted(means) and means[-1] > 1.1 * means[0]


@QUICK
@given(nodes, seeds, mtbfs, guards)
def test_one_seed_gives_one_story_and_every_node_second_has_its_place(
    count: int, seed: int, mtbf: float, guard: Training
) -> None:
    def story() -> list[Spent]:
        simulation = Simulation(Cluster(count, count * mtbf, seed=seed))
        return [simulation.shards(70, 900.0), simulation.training(50_000.0, guard), simulation.shards(9, 1800.0)]

    told = story()
    assert told == story()
    for spent in told:
        assert spent.wall * count == pytest.approx(parts(spent), rel=1e-9)
        assert all(getattr(spent, one.name) >= -1e-4 for one in fields(spent))


def test_a_node_fails_as_often_as_it_is_said_to() -> None:
    failures, now, seen = NodeFailures(3, 0, 100.0), 0.0, 0
    while now < 200_000 * HOUR:
        now, seen = failures.after(now), seen + 1
    assert seen == pytest.approx(2000, rel=0.1)
    assert NodeFailures(3, 0, None).after(0.0) == float("inf")


def test_the_rarer_failures_of_a_seed_are_among_its_more_frequent_ones() -> None:
    def times(mtbf: float) -> set[float]:
        failures, now, found = NodeFailures(5, 2, mtbf), 0.0, set()
        while now < 5000 * HOUR:
            found.add(now := failures.after(now))
        return {one for one in found if one < 5000 * HOUR}

    assert times(1000.0) < times(100.0) < times(17.0)


def test_a_node_that_fails_at_a_steps_end_is_missing_in_the_next_one() -> None:
    for seed in range(2000):
        simulation = Simulation(Cluster(2, 1.0, repair_seconds=7200.0, seed=seed))
        first = simulation.shards(2, 600.0)
        if first.failures == 1 and first.wall < 1900:
            break
    second = simulation.shards(2, 10.0)
    assert second.failures == 0 and second.replaced > 0 and second.wall == pytest.approx(20.0)


def test_what_could_never_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="never ends; take smaller shards"):
        Simulation(Cluster(1, 1.0)).shards(1, 8 * HOUR)
    with pytest.raises(ConfigurationError, match="A checkpoint takes"):
        Simulation(Cluster(100, 10.0)).training(1e6, Training(3600, 5, 300))
