"""Size and shape are judged from two numbers, the same lying or standing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filtering.geometry import Geometry
from pipelines.errors import ConfigurationError
from pipelines.settings import parse

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("width", "height", "reason", "detail"),
    [
        (600, 200, None, None),
        (200, 200, None, None),
        (601, 200, "extreme_aspect", "aspect 3.0 > 3.0"),
        (1820, 200, "extreme_aspect", "aspect 9.1 > 3.0"),
        (200, 1820, "extreme_aspect", "aspect 9.1 > 3.0"),
        (199, 400, "too_small", "shorter side 199 < 200"),
        (10_000, 10, "too_small", "shorter side 10 < 200"),
    ],
)
def test_a_size_is_kept_or_dropped_with_what_was_measured(
    width: int, height: int, reason: str | None, detail: str | None
) -> None:
    drop = Geometry().judge(width, height)
    assert (drop and drop.reason, drop and drop.detail) == (reason, detail)


@given(SIDES, SIDES, st.integers(1, 500), st.floats(1, 20))
def test_the_verdict_is_the_rule(width: int, height: int, least: int, most: float) -> None:
    drop = Geometry(min_side=least, max_aspect=most).judge(width, height)
    shorter, longer = min(width, height), max(width, height)
    assert (drop is None) == (shorter >= least and longer <= most * shorter)


@given(SIDES, SIDES)
def test_turning_a_picture_changes_nothing(width: int, height: int) -> None:
    assert Geometry().judge(width, height) == Geometry().judge(height, width)


@pytest.mark.parametrize("settings", [{"max_aspect": 0.5}, {"min_side": 0}, {"max_ratio": 3}])
def test_limits_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        parse(Geometry, settings, "here")
