"""Two checkpoints on the same items: paired differences with bootstrap intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harmon.evaluation.measured import Measured
from harmon.evaluation.measures import COVERED, RESAMPLES, SEED, Interval, difference, finite
from pipelines.errors import HarmonError


@dataclass(frozen=True)
class Difference:
    """One measure of two checkpoints; `interval` is the first less the second."""

    benchmark: str
    measure: str
    unit: str
    units: int
    first: float
    second: float
    interval: Interval
    higher_is_better: bool
    uncertain: bool
    """Whether there is an interval: not of one unit alone."""

    @property
    def better(self) -> str | None:
        """Whose side all of the interval is on, first or second; None where the items do not tell them apart."""
        low, high = self.interval.low, self.interval.high
        if not self.uncertain or not math.isfinite(low) or low <= 0 <= high:
            return None
        return "first" if (low > 0) == self.higher_is_better else "second"

    def report(self) -> dict[str, Any]:
        """As JSON; what is not a number is null."""
        bounds = [finite(self.interval.low), finite(self.interval.high)] if self.uncertain else None
        return {
            "benchmark": self.benchmark,
            "measure": self.measure,
            "unit": self.unit,
            "units": self.units,
            "first": finite(self.first),
            "second": finite(self.second),
            "difference": finite(self.interval.value),
            "interval_95": bounds,
            "better": self.better,
            "resamples": RESAMPLES,
            "seed": SEED,
            "covered": COVERED,
        }


def differences(first: Measured, second: Measured) -> list[Difference]:
    """Every measure that both have, over the same items.

    Raises:
        HarmonError: the two are not of the same benchmark and items.
    """
    if first.chosen != second.chosen or first.items != second.items:
        raise HarmonError(
            f"{first.chosen.benchmark} of one checkpoint and {second.chosen.benchmark} of the other are not the same "
            "items; measure both with the same limit and variant."
        )
    theirs = {number.measure.name: number for number in second.numbers}
    return [
        Difference(
            benchmark=first.chosen.benchmark,
            measure=one.measure.name,
            unit=one.measure.unit,
            units=len(one.measure.units),
            first=one.interval.value,
            second=theirs[one.measure.name].interval.value,
            interval=difference(one.measure, theirs[one.measure.name].measure),
            higher_is_better=one.measure.higher_is_better,
            uncertain=one.uncertain,
        )
        for one in first.numbers
        if one.measure.name in theirs
    ]


def all_differences(first: Sequence[Measured], second: Sequence[Measured]) -> list[Difference]:
    """`differences` of each benchmark in turn."""
    return [one for pair in zip(first, second, strict=True) for one in differences(*pair)]
