"""No near pair is missed, whatever the distance; the work grows hardly faster than the rows."""

import time

import numpy as np
import pytest

from filtering import covering
from filtering.covering import BITS, cheapest, cost, masks, near_another, possible

SAME_SHAPE = np.float32(0.07)
WAYS = [(distance, *way) for distance in range(16) for way in possible(distance)]


def flipped(hashes: np.ndarray, bits: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """`hashes` [N] with so many different bits of each flipped."""
    order = draw.permuted(np.tile(np.arange(BITS, dtype=np.uint64), (len(hashes), 1)), axis=1)
    ones = np.where(np.arange(BITS) < bits[:, None], np.uint64(1) << order, np.uint64(0))
    return hashes ^ np.bitwise_or.reduce(ones, axis=1)


def random_hashes(number: int, draw: np.random.Generator) -> np.ndarray:
    return draw.integers(0, 2**64 - 1, number, dtype=np.uint64, endpoint=True)


def compared(hashes: np.ndarray, shapes: np.ndarray, distance: int) -> np.ndarray:
    """The truth, from every two."""
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
    near &= np.abs(shapes[:, None] - shapes) <= SAME_SHAPE
    np.fill_diagonal(near, False)
    return near.any(axis=1)


@pytest.mark.parametrize(("distance", "spans", "together"), WAYS)
def test_any_two_within_the_distance_are_equal_under_some_mask(distance: int, spans: int, together: int) -> None:
    draw = np.random.default_rng(distance)
    hashes = random_hashes(3000, draw)
    differ = hashes ^ flipped(hashes, np.full(3000, distance), draw)
    hidden = np.zeros(3000, bool)
    for mask in masks(distance, spans, together):
        hidden |= differ & np.uint64(mask) == 0
    assert hidden.all()


@pytest.mark.parametrize("distance", [0, 1, 5, 10, 15])
@pytest.mark.parametrize("run", [1, covering.RUN])
def test_rows_near_another_are_found_and_with_enough_comparing_no_others(
    monkeypatch: pytest.MonkeyPatch, distance: int, run: int
) -> None:
    monkeypatch.setattr(covering, "RUN", run)
    draw = np.random.default_rng(distance)
    hashes = random_hashes(1500, draw)
    hashes[:400] = flipped(hashes[-400:], draw.integers(0, 2 * distance + 2, 400), draw)
    hashes[400:430] = hashes[430]  # a picture that stands there often
    shapes = draw.choice([0.0, 0.05, 0.2, np.nan], 1500).astype(np.float32)
    found, true = near_another(hashes, shapes, distance, SAME_SHAPE), compared(hashes, shapes, distance)
    assert not (true & ~found).any()
    if run > 1 and distance <= 10:
        assert (found == true).all()


def test_few_rows_are_no_trouble() -> None:
    for number in range(3):
        same = near_another(np.zeros(number, np.uint64), np.zeros(number, np.float32), 10, SAME_SHAPE)
        assert same.tolist() == [number > 1] * number


def test_ten_times_the_rows_cost_far_less_than_a_hundred_times_as_much() -> None:
    for rows in (10_000, 100_000, 1_000_000, 10_000_000):  # with every two compared: 100 times
        assert cost(10 * rows, cheapest(10 * rows, 10)) <= 40 * cost(rows, cheapest(rows, 10))


@pytest.mark.alone
def test_eight_times_the_rows_take_less_than_twenty_times_as_long() -> None:
    """With every two compared they would take 64 times as long."""
    draw, seconds = np.random.default_rng(0), []
    for rows in (40_000, 320_000):
        hashes = random_hashes(rows, draw)
        hashes[: rows // 20] = flipped(hashes[-(rows // 20) :], draw.integers(0, 11, rows // 20), draw)
        begun = time.process_time()
        found = near_another(hashes, np.zeros(rows, np.float32), 10, SAME_SHAPE)
        seconds.append(time.process_time() - begun)
        assert found[: rows // 20].all() and found[-(rows // 20) :].all()
        assert found.sum() <= 1.2 * rows / 10
    assert seconds[1] < 20 * seconds[0]
