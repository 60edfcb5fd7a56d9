"""Numbers with their uncertainty: a measure is a function of sums over units, so that it can be computed again for any
weights of the units, as the bootstrap does.

A unit is what counts together: a question, a picture of MME with its two questions, a circle of MMBench, a prompt of
GenEval with its four pictures. Units are drawn again within their stratum (a task, a category) where the measure is a
mean over these. Ours: the official codes give no uncertainty.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import HarmonError

Float = NDArray[np.float64]
RESAMPLES, SEED = 1000, 0
COVERED = 95.0  # percent of an interval
ROWS = 64  # resamples whose weights are held at a time


@dataclass(frozen=True)
class Interval:
    """A number and the bounds between which 95 % of the resamples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Measure:
    """One number of a benchmark."""

    name: str
    unit: str
    """Of its value: "%", "points"; nothing for a share of 1."""
    units: tuple[str, ...]
    """What is drawn again, by name: those of two checkpoints must be the same to be paired."""
    strata: tuple[str, ...]
    """The stratum of each unit."""
    sums: Float
    """[units, K]: what each unit adds."""
    of: Callable[[Float], Float]
    """Sums [..., K] to values [...]; not a number where a share of nothing is asked for."""
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """Over every unit once."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.of(self.sums.sum(axis=0)))

    @cached_property
    def resampled(self) -> Float:
        """Its values over RESAMPLES draws of the units. Measures of equal name and units share their draws."""
        name = hashlib.sha256("\n".join((self.name, *self.units)).encode()).digest()
        draws = np.random.default_rng([SEED, int.from_bytes(name[:8], "little")])
        places: dict[str, list[int]] = {stratum: [] for stratum in self.strata}
        for place, stratum in enumerate(self.strata):
            places[stratum].append(place)
        found = []
        for start in range(0, RESAMPLES, ROWS):
            weights = np.zeros((min(ROWS, RESAMPLES - start), len(self.units)))
            for some in places.values():
                weights[:, some] = draws.multinomial(len(some), [1 / len(some)] * len(some), size=len(weights))
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(self.of(weights @ self.sums))
        return np.concatenate(found)

    @property
    def interval(self) -> Interval:
        """Its value with the bounds of 95 % of the resamples."""
        low, high = _bounds(self.resampled)
        return Interval(self.value, low, high)


def difference(first: Measure, second: Measure) -> Interval:
    """`first` less `second`, both drawn again with the same units each time.

    Raises:
        HarmonError: the two are not over the same units.
    """
    if (first.name, first.units, first.strata) != (second.name, second.units, second.strata):
        raise HarmonError(
            f"{first.name} of the two checkpoints is over {len(first.units):,} and {len(second.units):,} items that "
            "are not the same; measure both with the same limit and variant."
        )
    low, high = _bounds(first.resampled - second.resampled)
    return Interval(first.value - second.value, low, high)


def share(
    name: str, units: Sequence[str], values: Sequence[float], strata: Sequence[str] = (), percent: bool = True
) -> Measure:
    """The mean of `values`, one a unit; with `strata` still the mean over all units."""
    sums = np.array([values, np.ones(len(values))], dtype=np.float64).T
    scale = 100 if percent else 1
    return Measure(
        name,
        "%" if percent else "",
        tuple(units),
        tuple(strata) or ("",) * len(units),
        sums,
        lambda total: scale * total[..., 0] / total[..., 1],
    )


def mean_of_strata(
    name: str, units: Sequence[str], sums: Sequence[tuple[float, float]], strata: Sequence[str], unit: str = ""
) -> Measure:
    """The mean over strata of the share in each: of `sums`, a unit's part and whole."""
    names = list(dict.fromkeys(strata))
    weights = dict.fromkeys(names, 1 / len(names))
    return weighted_strata(name, units, sums, strata, weights, unit)


def weighted_strata(
    name: str,
    units: Sequence[str],
    sums: Sequence[tuple[float, float]],
    strata: Sequence[str],
    weights: dict[str, float],
    unit: str = "",
) -> Measure:
    """The sum over strata of weight times the share in each, of `sums`, a unit's part and whole.

    A stratum of `weights` without units makes it not a number.
    """
    order = list(weights)
    spread = np.zeros((len(units), 2 * len(order)))
    for row, (pair, stratum) in enumerate(zip(sums, strata, strict=True)):
        spread[row, 2 * order.index(stratum) : 2 * order.index(stratum) + 2] = pair
    factors = np.array([weights[stratum] for stratum in order])

    def of(total: Float) -> Float:
        value: Float = (total[..., 0::2] / total[..., 1::2]) @ factors
        return value

    return Measure(name, unit, tuple(units), tuple(strata), spread, of)


def finite(value: float) -> float | None:
    """As JSON takes a number: None where it is none."""
    return value if math.isfinite(value) else None


def _bounds(values: Float) -> tuple[float, float]:
    there = values[np.isfinite(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.percentile(there, [(100 - COVERED) / 2, (100 + COVERED) / 2])
    return float(low), float(high)
