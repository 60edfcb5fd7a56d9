from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmon.training.draws import draw_images, masked_positions
from harmon.training.mixture import (
    Block,
    Interleave,
    MixtureSource,
    Shuffle,
    TaskMixture,
    blocks_of_step,
    cursors,
    drawn_weights,
)
from harmon.training.stage import load_stage
from pipelines.errors import ConfigurationError

STAGE = load_stage("stage2", {"global_batch": 24, "block_rows": 4})
WEIGHTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)
COUNTS = st.lists(st.integers(1, 20), min_size=1, max_size=9)


@given(weights=WEIGHTS, places=st.integers(0, 500))
def test_interleave_keeps_every_share_within_one(weights: list[int], places: int):
    interleave = Interleave(weights)
    counts = interleave.counts(places)
    assert sum(counts) == places
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - places * weight / sum(weights)) < 1
    entry, before = interleave.locate(places)
    assert before == counts[entry]
    assert interleave.counts(places + 1)[entry] == before + 1


@given(counts=COUNTS, window=st.integers(1, 10), seed=st.integers(0, 9))
def test_an_epoch_visits_every_row_once(counts: list[int], window: int, seed: int):
    shuffle = Shuffle(counts, window, seed)
    rows = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    for epoch in (0, 1, 7):
        visited = [shuffle.locate(epoch * shuffle.total + position) for position in range(shuffle.total)]
        assert sorted(visited) == rows


def test_neighbouring_positions_need_few_shards():
    shuffle = Shuffle([10] * 40, 4, "key")
    for start in range(0, 400, 40):
        assert len({shuffle.locate(position)[0] for position in range(start, start + 40)}) == 4


def test_a_far_position_is_reached_at_once():
    shuffle = Shuffle([1000] * 500, 8, "key")
    first = [shuffle.locate(200_000_000 + i) for i in range(100)]
    assert first == [Shuffle([1000] * 500, 8, "key").locate(200_000_000 + i) for i in range(100)]


def test_entries_get_their_weights_and_only_eligible_rows():
    eligible = [{0: np.array([1, 3]), 5: np.array([0])}, {2: np.array([4, 5, 6])}]
    mixture = TaskMixture(STAGE, "text2image", [3, 1], eligible)
    found = [mixture.locate(index) for index in range(400)]
    assert Counter(entry for entry, _, _ in found) == {0: 300, 1: 100}
    assert {(shard, row) for entry, shard, row in found if entry == 0} == {(0, 1), (0, 3), (5, 0)}
    assert mixture.epochs(400) == [100.0, 100 / 3]


def test_an_entry_with_epochs_is_passed_so_often_over_the_stage_and_the_others_share_the_rest():
    stage = load_stage("stage2", {"steps": 300})
    samples = cursors(stage, stage.steps)["text2image"]
    entries = [MixtureSource(dataset="d", rows="text2image", text="caption", **how)
               for how in ({"epochs": 2.5}, {"weight": 3}, {"weight": 1})]  # fmt: skip
    rows = [40_000, 9_000_000, 500]
    counts = Interleave(drawn_weights(stage, "text2image", entries, rows)).counts(samples)
    assert counts[0] / rows[0] == pytest.approx(2.5, rel=0.01)
    assert counts[1] / counts[2] == pytest.approx(3, rel=0.01)
    assert drawn_weights(stage, "text2image", entries[1:], rows[1:]) == [3, 1]  # as they are


def test_epochs_that_leave_nothing_or_have_nothing_beside_them_are_refused():
    stage = load_stage("stage2", {"steps": 3})
    some, other = (MixtureSource(dataset="d", rows="text", text="caption", **how) for how in ({"epochs": 9}, {}))
    for entries, rows in (((some,), (10,)), ((some, other), (10**6, 10))):
        with pytest.raises(ConfigurationError, match=r"samples of text, and the epochs of its entries come to \d"):
            drawn_weights(stage, "text", entries, rows)


@settings(max_examples=30)
@given(rows=st.integers(1, 40), world=st.integers(1, 8))
def test_workers_share_a_block_evenly_and_wholly(rows: int, world: int):
    shares = [Block("text", 100, rows).share(rank, world) for rank in range(world)]
    assert [number for share in shares for number in share] == list(range(100, 100 + rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_cursors_are_where_the_next_blocks_begin():
    for step in range(50):
        starts: dict[str, int] = {}
        for block in blocks_of_step(STAGE, step):
            starts.setdefault(block.task, block.start)
        assert all(cursors(STAGE, step)[task] == start for task, start in starts.items())


def test_a_samples_draws_do_not_depend_on_its_company():
    together = draw_images(STAGE, range(10, 18), tokens=16, channels=4, repeats=2)
    alone = draw_images(STAGE, range(13, 14), tokens=16, channels=4, repeats=2)
    assert np.array_equal(together.order[3], alone.order[0])
    assert np.array_equal(together.noise[:, 3], alone.noise[:, 0])
    assert np.array_equal(together.timesteps[:, 3], alone.timesteps[:, 0])
    assert together.dropped[3] == alone.dropped[0]
    other = draw_images(STAGE.model_copy(update={"seed": 1}), range(13, 14), tokens=16, channels=4, repeats=2)
    assert not np.array_equal(other.noise, alone.noise)


def test_draws_have_the_distributions_they_are_named_for():
    draws = draw_images(STAGE, range(4000), tokens=16, channels=2, repeats=2)
    assert abs(draws.dropped.mean() - 0.1) < 0.02
    assert np.array_equal(np.sort(draws.order, 1), np.tile(np.arange(16), (4000, 1)))
    assert abs(draws.noise.mean()) < 0.01 and abs(draws.noise.std() - 1) < 0.01
    assert draws.timesteps.min() == 0 and draws.timesteps.max() == 999


def test_mask_ratios_follow_the_truncated_normal_and_may_be_forced_full():
    masked = np.array([masked_positions(STAGE, start, 1000) for start in range(4000)]) / 1000
    assert masked.min() >= 0.7 and masked.max() <= 1
    assert abs(masked.mean() - 0.867) < 0.005  # mean of a normal (1, 0.25) cut to [0.7, 1]
    half = STAGE.model_copy(update={"full_mask_share": 0.5})
    full = np.array([masked_positions(half, start, 1000) == 1000 for start in range(4000)])
    assert abs(full.mean() - 0.5) < 0.03
