"""How often one host is asked: a limit of connections, a limit of requests in a second, and its own Retry-After.

The state is one, the waiting is not: threads sleep and take a `threading.Semaphore`, coroutines await and take an
`asyncio.Semaphore`. Standard library alone, because img2dataset's environment loads it too.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from pipelines.rules import REFUSED, FetchError, Rules

KEPT = 4096  # hosts remembered; beyond, those that nobody waits for are forgotten

S = TypeVar("S")  # threading.Semaphore or asyncio.Semaphore


def _tell_nobody(until: float) -> None:
    """Where one process is all there is."""


class Pauses:
    """The pauses that hosts ask for, told between the processes of one download through a file that each appends to.

    Times are those of the machine's monotonic clock, which its processes share.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._read = 0
        self._lock = threading.Lock()

    def tell(self, host: str, until: float) -> None:
        """Nobody is to ask `host` before `until`."""
        os.write(self._file, f"{host}\t{until!r}\n".encode())

    def news(self) -> list[tuple[str, float]]:
        """What has been told since, by this process too."""
        if os.fstat(self._file).st_size == self._read:
            return []
        with self._lock:
            data = os.pread(self._file, os.fstat(self._file).st_size - self._read, self._read)
            data = data[: data.rfind(b"\n") + 1]  # without a line that is being written
            self._read += len(data)
        told = (line.split("\t") for line in data.decode().splitlines())
        return [(host, float(until)) for host, until in told]


class Host(Generic[S]):
    """One host: who may be connected to it, and when it may be asked next (on a monotonic clock)."""

    def __init__(self, turns: S, gap: float, max_pause: float, tell: Callable[[float], None]) -> None:
        """`tell` passes on until when the host wants to be left alone."""
        self.turns = turns
        self._tell = tell
        self.users = 0
        """Links under way or waiting."""
        self._answered: set[int] = set()  # ports that have
        self._gap = gap
        self._max_pause = max_pause
        self._next = 0.0
        self._closed = 0.0
        self._lock = threading.Lock()

    def wait(self, now: float) -> float:
        """Seconds to wait before asking again; 0: the host may be asked now, and this was it.

        Raises FetchError, `paused`, where the host wants a longer pause than is waited for.
        """
        with self._lock:
            if self._closed - now > self._max_pause:
                raise FetchError("paused", f"its host asks for a pause of more than {self._max_pause:g} s")
            if (free := max(self._next, self._closed)) > now:
                return free - now
            self._next = now + self._gap
            return 0.0

    def answered(self, port: int) -> None:
        """Something came from `port`."""
        self._answered.add(port)

    def failed(self, port: int, error: FetchError, now: float) -> FetchError:
        """What a failure at `port` means, knowing the host, whose Retry-After closes it.

        A host that has answered and refuses now is `gone`: for a while, or the network is.
        """
        if error.retry_after:
            self.close(now + error.retry_after)
            self._tell(now + error.retry_after)
        if error.status:
            self.answered(port)
        elif port in self._answered and error.detail == REFUSED:
            return FetchError("gone", "its host has answered before and refuses now")
        return error

    def close(self, until: float) -> None:
        """Ask nothing before `until`, as the host wishes."""
        with self._lock:
            self._closed = max(self._closed, until)

    def is_idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return self.users == 0 and max(self._next, self._closed) <= now


class Hosts(Generic[S]):
    """The hosts that are being asked; memory stays bounded whatever a list names."""

    def __init__(self, rules: Rules, turns: Callable[[int], S], pauses: Pauses | None = None) -> None:
        """`turns` makes the semaphore of one host from the number of connections that it may have; through `pauses`
        processes tell each other of those that hosts ask for."""
        self._rules = rules
        self._pauses = pauses
        self._turns = turns
        self._hosts: OrderedDict[str, Host[S]] = OrderedDict()
        self._lock = threading.Lock()

    def enter(self, name: str, now: float) -> Host[S]:
        """The host of this name; `leave` it when the link is done."""
        with self._lock:
            host = self._known(name, now)
            host.users += 1
            return host

    def wait(self, host: Host[S], now: float) -> float:
        """Seconds to wait before `host` may be asked, as `Host.wait`, knowing what other processes were told."""
        for name, until in self._pauses.news() if self._pauses else ():
            with self._lock:
                self._known(name, now).close(until)
        return host.wait(now)

    def leave(self, host: Host[S]) -> None:
        """One link of `host` is done."""
        with self._lock:
            host.users -= 1

    def _known(self, name: str, now: float) -> Host[S]:
        if (host := self._hosts.get(name)) is None:
            if len(self._hosts) >= KEPT:
                self._forget(now)
            turns, gap = self._turns(self._rules.per_host), 1.0 / self._rules.per_second
            tell = partial(self._pauses.tell, name) if self._pauses else _tell_nobody
            host = self._hosts[name] = Host(turns, gap, self._rules.max_pause, tell)
        self._hosts.move_to_end(name)
        return host

    def _forget(self, now: float) -> None:
        """The older half, as far as they are idle."""
        for name in [name for name, host in list(self._hosts.items())[: KEPT // 2] if host.is_idle(now)]:
            del self._hosts[name]
