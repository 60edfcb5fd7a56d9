"""How many requests one endpoint is given at a time: as many as bring more answers a second, and no more."""

import time
from collections.abc import Callable

FIRST = 128  # at the start: fewer than vLLM batches where it is not told otherwise
_GROWTH = 1.25  # once doubling has stopped helping
_WORTH = 1.05  # a larger window has to bring this many times the answers a second to stay
_FULL = 0.9  # of the window in use: enough to judge it, since a request that goes elsewhere leaves a hole
_PAUSE = 16  # rounds at a standing window before a larger one is tried again


class Window:
    """Grows while that pays, halves when the server says "too many".

    Time is cut into rounds of as many answers as the window holds. The first round after a change is left out,
    since its answers were asked for under the old one; the rate of the second is compared with the rate before
    the change. A continuous-batching server answers more a second with more to batch, up to a point behind
    which requests only queue in it; the window stops there, and looks again every few rounds, since the load
    of others and the length of answers change.
    """

    def __init__(self, most: int, first: int = FIRST, clock: Callable[[], float] = time.monotonic) -> None:
        """`most`: never more than this. `clock`: seconds, monotonic."""
        self.most = most
        self.limit = min(first, most)
        self._clock = clock
        self._doubling = True
        self._best = 0.0  # answers a second at the window that stands
        self._standing = self.limit
        self._wait = 0  # rounds until a larger window is tried
        self._halved = float("-inf")
        self._begin(settle=True)

    def answered(self, in_flight: int) -> None:
        """An answer came; `in_flight`: requests under way with it. A window that is not full is not judged."""
        if in_flight < _FULL * self.limit:
            self._full = False
        self._answers += 1
        if self._answers < self.limit:
            return
        rate = self._answers / max(1e-9, self._clock() - self._began)
        settled, full = self._settled, self._full
        self._begin(settle=False)
        if settled and full:
            self._judge(rate)

    def refused(self, sent: float) -> None:
        """The server was too busy for a request sent at `sent`: half the window, once for each burst."""
        if sent < self._halved:
            return  # sent under the window that has been halved since
        self._halved = self._clock()
        self.limit = self._standing = max(1, self.limit // 2)
        self._best, self._doubling, self._wait = 0.0, False, 2
        self._begin(settle=True)

    def _judge(self, rate: float) -> None:
        if self.limit > self._standing:  # a larger window was on trial
            if rate < _WORTH * self._best:
                self.limit, self._wait, self._doubling = self._standing, _PAUSE, False
                self._begin(settle=True)
                return
            self._standing = self.limit
        self._best = rate
        self._wait -= 1
        if self._wait <= 0 and self.limit < self.most:
            larger = 2 * self.limit if self._doubling else max(self.limit + 1, int(self.limit * _GROWTH))
            self.limit = min(self.most, larger)
            self._begin(settle=True)

    def _begin(self, settle: bool) -> None:
        """A new round; with `settle`, one more comes before the next that is judged."""
        self._settled = not settle
        self._answers, self._full = 0, True
        self._began = self._clock()
