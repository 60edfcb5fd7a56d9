"""The cut keeps exactly as many rows as are asked for, over any number of shards, in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filtering.cut import Take, amount, cuts, orders, score_of
from filtering.geometry import Geometry
from filtering.plan import plan
from filtering.rows import shards_of
from filtering.selection import Selection
from filtering.shuffle import places_of
from tests.filtering.pictured import Row, write_rows, write_scores

ROOT = Path(__file__).parents[2]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_orders_rank_as_scores_do_and_tell_the_score_back(scores: list[float]) -> None:
    values = np.array(scores, np.float32)
    found = orders(values, np.zeros(len(values), np.uint64))
    assert (np.sort(values) == values[np.argsort(found, kind="stable")]).all()
    assert all(score_of(int(one)) == float(value) for one, value in zip(found, values, strict=True))


@given(
    st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=30, unique=True), min_size=1, max_size=4),
    st.data(),
)
def test_exactly_the_wanted_number_lies_at_or_above_the_cut(groups: list[list[int]], data: st.DataObject) -> None:
    wanted = [data.draw(st.integers(0, len(group))) for group in groups]

    def passes():
        for number, group in enumerate(groups):
            for start in range(0, len(group), 7):
                some = np.array(group[start : start + 7], np.uint64)
                yield np.full(len(some), number), some

    for number, (lowest, group) in enumerate(zip(cuts(passes, wanted), groups, strict=True)):
        assert sum(lowest is not None and value >= lowest for value in group) == wanted[number]


def test_all_four_passes_find_the_cut_among_more_values_than_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filtering.cut.FEW", 0)
    values = np.random.default_rng(0).integers(0, 1 << 20, 5000, dtype=np.uint64) << np.uint64(3)
    values = np.unique(values)
    (lowest,) = cuts(lambda: [(np.zeros(len(values), np.int64), values)], [1234])
    assert lowest is not None
    assert (values >= lowest).sum() == 1234


@pytest.mark.parametrize(
    ("keep", "present", "wanted"),
    [("10M of 50M", 1000, 200), ("20%", 1000, 200), ("10M", 5, 10_000_000), (7, 5, 7), ("2.5K", 5, 2500)],
)
def test_amounts_are_counts_shares_or_counts_of_counts(keep: int | str, present: int, wanted: int) -> None:
    assert amount(keep, present) == wanted


@pytest.mark.parametrize("keep", ["120%", "ten", "-3", "50M of 10M", "%"])
def test_an_amount_that_is_none_is_refused(keep: str) -> None:
    with pytest.raises(ValueError, match=r"amount|share|convert"):
        Take(group="a", column="b", keep=keep)


def test_quotas_and_quantiles_say_how_many() -> None:
    take = Take(group="a", column="b", quantile=0.8, quotas={"x": "50%", "y": 10})
    assert take.wanted({"": 1000, "x": 300, "y": 4}) == {"": 200, "x": 150, "y": 4}


def test_a_target_count_over_a_thousand_shards_is_met_within_256_mebibytes(tmp_path: Path) -> None:
    """10 million scores in 1,000 shards, read as a selection's plan reads them; the peak above imports is measured."""
    code = (
        "from benchmarks.memory import peak_memory\n"
        "import numpy as np\n"
        "from filtering.cut import cuts, orders\n"
        "import filtering.select\n"
        "def shard(n):\n"
        "    draw = np.random.default_rng(n)\n"
        "    scores = np.round(draw.normal(5, 1, 10_000), 2).astype(np.float32)\n"
        "    return scores, draw.integers(0, 2**64, 10_000, np.uint64)\n"
        "def passes():\n"
        "    for n in range(1000):\n"
        "        yield np.zeros(10_000, np.int64), orders(*shard(n))\n"
        "before = peak_memory()\n"
        "(lowest,) = cuts(passes, [2_000_000])\n"
        "kept = sum(int((values >= lowest).sum()) for _, values in passes())\n"
        "print(kept, (peak_memory() - before) / 2**20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=True
    )
    kept, mebibytes = done.stdout.split()
    assert abs(int(kept) - 2_000_000) <= 2_000
    assert float(mebibytes) <= 256


def test_tied_scores_are_drawn_apart_from_the_shuffle_and_the_rest_say_so(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row(f"r{n}", data=b"%d" % n) for n in range(600)], 300)
    write_scores(dataset, "score.toy", [5.37] * 300)
    rules = Selection(geometry=Geometry(min_side=1), take=Take(group="score.toy", column="score", keep="50%"), seed=3)
    made = plan([dataset], rules)
    places = []
    for _, rows in shards_of([dataset]):
        keys = np.array(rows.values("source", "key"))[made.codes[0, rows.shard] == 0]
        places += (places_of(keys.tolist(), rules.seed) / 2**64).tolist()
        drops = made.drops(0, rows)
        assert {drop.detail for drop in drops.values()} == {
            "score 5.37 is the cut, and the draw among equal scores went to others"
        }
    assert len(places) == 300
    steps = (np.arange(300) + 0.5) / 300
    assert np.abs(np.sort(places) - steps).max() < 0.1  # Kolmogorov-Smirnov: 0.094 is passed once in a hundred draws
