"""When the nodes of a simulated cluster fail: an exponential clock for each, the same for the same seed.

Every node has one stream of possible failures, each with a strength drawn evenly up to the highest rate that is ever
asked for; a smaller time between failures lets more of the same ones happen. So two simulations of one seed differ by
added failures alone.
"""

from collections.abc import Iterator
from random import Random

HOUR = 3600.0
_FIRST_RATE = 1 / (20_000 * HOUR)
"""Failures a second of the first layer of strengths; each further layer doubles it."""


class NodeFailures:
    """The failures of one node, in order of time."""

    def __init__(self, seed: int, node: int, mtbf_hours: float | None) -> None:
        """`mtbf_hours`: mean time between failures; None: never."""
        self._rate = 0.0 if mtbf_hours is None else 1 / (mtbf_hours * HOUR)
        covered = 0.0
        layers: list[Iterator[float]] = []
        while covered < self._rate:
            width = covered or _FIRST_RATE  # doubles what is covered
            layers.append(self._layer(Random(f"{seed}/{node}/{len(layers)}"), covered, width))
            covered += width
        self._layers = layers
        self._next = [next(layer) for layer in layers]

    def _layer(self, random: Random, low: float, width: float) -> Iterator[float]:
        """Times of the failures whose strength lies in this layer and below the rate."""
        now = 0.0
        while True:
            now += random.expovariate(width)
            if low + width * random.random() < self._rate:
                yield now

    def after(self, moment: float) -> float:
        """The first failure after `moment`, which never goes back; infinity where there is none."""
        for place, layer in enumerate(self._layers):
            while self._next[place] <= moment:
                self._next[place] = next(layer)
        return min(self._next, default=float("inf"))

    def up_again(self, failure: float, repair: float) -> float:
        """When the node works again after it failed: a failure while it is replaced begins that again."""
        up = failure + repair
        while (again := self.after(failure)) < up:
            failure, up = again, again + repair
        return up
