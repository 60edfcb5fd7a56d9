"""Numbers with their uncertainty: intervals that cover, pairs that cancel, means over strata."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from harmon.evaluation import measured
from harmon.evaluation.comparison import Difference
from harmon.evaluation.marks import Marked
from harmon.evaluation.measures import Interval, Measure, difference, mean_of_strata, share, weighted_strata
from harmon.evaluation.variants import Chosen
from pipelines.errors import HarmonError

NAMES = [f"q{number}" for number in range(400)]


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    values = [1.0] * 300 + [0.0] * 100
    found = share("accuracy", NAMES, values).interval
    error = 100 * (0.75 * 0.25 / 400) ** 0.5
    assert found.value == 75
    assert found.low == pytest.approx(75 - 1.96 * error, abs=0.5)
    assert found.high == pytest.approx(75 + 1.96 * error, abs=0.5)
    assert found == share("accuracy", NAMES, values).interval  # seeded


def test_paired_resamples_cancel_what_both_share() -> None:
    draws = np.random.default_rng(3)
    hard = draws.random(400) < 0.5
    first = share("accuracy", NAMES, [float(one) for one in hard])
    second = share("accuracy", NAMES, [float(one) for one in hard])
    assert difference(first, second).value == difference(first, second).low == difference(first, second).high == 0
    better = [float(one or number % 20 == 0) for number, one in enumerate(hard)]
    told = difference(share("accuracy", NAMES, better), first)
    assert told.low > 0  # though each interval by itself holds the other's value
    assert first.interval.high > share("accuracy", NAMES, better).value


def test_other_items_are_not_paired() -> None:
    first, second = share("accuracy", NAMES, [1.0] * 400), share("accuracy", NAMES[:-1], [1.0] * 399)
    with pytest.raises(HarmonError, match="400 and 399 items that are not the same"):
        difference(first, second)


def test_a_mean_over_strata_weighs_each_stratum_alike_and_draws_within_it() -> None:
    strata = ["few"] * 10 + ["many"] * 390
    pairs = [(1.0, 1.0)] * 10 + [(0.0, 1.0)] * 390
    found = mean_of_strata("overall", NAMES, pairs, strata).interval
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    weighed = weighted_strata("overall", NAMES, pairs, strata, {"few": 0.2, "many": 0.8})
    assert weighed.value == pytest.approx(0.2)
    assert np.isnan(weighted_strata("overall", NAMES, pairs, strata, {"few": 0.2, "many": 0.3, "none": 0.5}).value)


def test_a_unit_of_several_items_is_drawn_whole() -> None:
    sums = np.array([[4.0, 4.0], [0.0, 4.0]] * 50)
    units = tuple(f"prompt {number}" for number in range(100))
    whole = Measure("share", "", units, ("",) * 100, sums, lambda total: total[..., 0] / total[..., 1])
    apart = share("share", NAMES, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0] * 50, percent=False)
    assert whole.value == apart.value == 0.5
    assert whole.interval.high - whole.interval.low > 1.7 * (apart.interval.high - apart.interval.low)


def test_a_difference_that_is_no_number_is_null() -> None:
    """F1 of a part of POPE without a yes is none."""
    nan = float("nan")
    one = Difference("pope", "random, F1", "%", 3, nan, 5.0, Interval(nan, nan, nan), True, True)
    told = json.loads(json.dumps(one.report(), allow_nan=False))
    assert (told["first"], told["second"], told["difference"], told["interval_95"]) == (None, 5.0, None, [None, None])
    assert one.better is None


def test_what_was_measured_otherwise_is_compared_with_nothing() -> None:
    """Another detector's GenEval near the paper's number is no reproduction of it."""
    subject = SimpleNamespace(identity=SimpleNamespace(size="harmon-0.5b"))
    marked = Marked((), {}, (share("overall", NAMES[:100], [1.0] * 71 + [0.0] * 29, percent=False),))
    for otherwise, within in ((False, True), (True, None)):
        (number,) = measured._numbers(subject, Chosen("geneval"), marked, otherwise)  # type: ignore[arg-type]
        assert number.within is within and number.report()["paper"] is not None
