"""Groups of near duplicates while they are made: each row's centre, kind and distance. 13 bytes a row.

Rows go by their place in the order of preference, 0 for the best. A row that has joined a centre is nobody's centre
from then on; a centre may join a better one later, and takes its rows along.
"""

import numpy as np
from numpy.typing import NDArray

KINDS = ("phash", "semantic", "centre")
PHASH, SEMANTIC, CENTRE = range(len(KINDS))

Rows = NDArray[np.int64]


class Stars:
    """Which row joined which."""

    def __init__(self, rows: int) -> None:
        self._up = np.full(rows, -1, np.int64)
        self.kind = np.full(rows, CENTRE, np.uint8)
        """KINDS by number, [rows]; CENTRE for a row that joined none."""
        self.distance = np.zeros(rows, np.float32)
        """To the row that it joined, [rows]: bits, or 1 - cosine."""

    def __len__(self) -> int:
        return len(self._up)

    def free(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of some rows have joined none."""
        return self._up[rows] < 0

    def join(self, rows: Rows, centres: Rows | int, kind: int, distances: NDArray[np.float32] | float) -> None:
        """`rows`, which are free, join `centres`, which are free and better."""
        self._up[rows] = centres
        self.kind[rows] = kind
        self.distance[rows] = distances

    def centres(self) -> Rows:
        """The centre of each row's group [rows]: itself for a centre, -1 for a row that is alone."""
        found = self._up.copy()
        joined = np.flatnonzero(found >= 0)
        left = joined
        while len(left):  # to the centre's centre; a chain has at most one link of each way of comparing
            above = self._up[found[left]]
            left, above = left[above >= 0], above[above >= 0]
            found[left] = above
        found[found[joined]] = found[joined]
        return found
