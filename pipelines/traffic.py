"""What passes while links are fetched: each worker writes one line a link, and the supervisor adds them up.

Standard library alone, because img2dataset's environment loads it too.
"""

import os
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

HOSTS = 100_000  # hosts counted; beyond, those with the fewest failures are forgotten
WINDOW = 10.0  # seconds over which rates are taken
SETTLED = 2.0  # seconds after which a dead worker's last words have been read
HOLD = "hold"  # file that is there while workers are to take up no more links
ALIVE = "alive"  # file that the supervisor touches each time it looks at what has landed
STALLED = 60.0  # seconds without that after which workers take up no more links either: it is storing, and not fast
HELD = 0.1  # seconds between two looks for them
WORST = 10  # hosts that are shown


@dataclass(frozen=True)
class Live:
    """How a download goes at one moment; rates are those of the last ten seconds."""

    seconds: float
    links: int
    """Links that have an answer or a reason for none."""
    pictures: int
    """Links that gave bytes."""
    bytes: int
    pictures_per_second: float
    bytes_per_second: float
    worst: tuple[tuple[str, int, int, str], ...]
    """Host, links that failed, links asked, the commonest reason: those with the most failures first."""

    @property
    def success_rate(self) -> float:
        """Share of the links that gave bytes, 0 to 1."""
        return self.pictures / self.links if self.links else 0.0

    def sentence(self) -> str:
        """One line for a log."""
        rates = f"{self.pictures_per_second:.1f} images/s, {self.bytes_per_second / 1e6:.2f} MB/s"
        worst = "; ".join(f"{host} {failed}/{asked} {reason}" for host, failed, asked, reason in self.worst)
        return f"{self.links} links, {rates}, {100 * self.success_rate:.1f} % fetched" + (
            f"; worst hosts: {worst}" if worst else ""
        )


class Meter:
    """A worker's side: appends `host, reason, bytes, links under way` to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.traffic", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._hold, self._alive = str(folder / HOLD), str(folder / ALIVE)
        self._under_way = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> bool:
        """Whether no further link is to be taken up for now, since enough has landed that nobody has stored yet."""
        if os.path.exists(self._hold):  # noqa: PTH110  # asked for every link
            return True
        try:
            return time.time() - os.stat(self._alive).st_mtime > STALLED  # noqa: PTH116
        except FileNotFoundError:  # nobody supervises
            return False

    def begin(self) -> None:
        """A link is taken up."""
        with self._lock:
            self._under_way += 1

    def end(self, host: str, reason: str, size: int) -> None:
        """A link is done; `reason` is empty where it gave its `size` bytes."""
        with self._lock:
            self._under_way -= 1
            os.write(self._file, f"{host}\t{reason}\t{size}\t{self._under_way}\n".encode())


@dataclass
class _Worker:
    """What is known of one worker."""

    pid: int
    read: int = 0
    torn: bytes = b""
    under_way: int = 0
    heard: float = 0.0


class Traffic:
    """The supervisor's side: follows the workers' files and says how it goes, and who has fallen silent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._began = time.monotonic()
        self._workers: dict[str, _Worker] = {}
        self._links = self._pictures = self._bytes = 0
        self._asked: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        self._past: deque[tuple[float, int, int]] = deque([(self._began, 0, 0)])
        self.heard = self._began
        """When any worker last finished a link."""

    def follow(self) -> None:
        """Take in what the workers have written since."""
        now = time.monotonic()
        for path in self.folder.glob("*.traffic"):
            worker = self._workers.setdefault(path.name, _Worker(int(path.stem)))
            with path.open("rb") as file:
                file.seek(worker.read)
                data = file.read()
            if not data:
                continue
            worker.read += len(data)
            *lines, worker.torn = (worker.torn + data).split(b"\n")
            for line in lines:
                self._count(worker, line.decode())
            worker.heard = self.heard = now
        self._past.append((now, self._pictures, self._bytes))
        while len(self._past) > 2 and self._past[1][0] < now - WINDOW:
            self._past.popleft()

    def hold(self, wanted: bool) -> None:
        """Let the workers take up no more links, or let them go on; they stop too where this is not called for long."""
        (self.folder / ALIVE).touch()
        if wanted:
            (self.folder / HOLD).touch()
        else:
            (self.folder / HOLD).unlink(missing_ok=True)

    def end(self) -> None:
        """The workers are gone, and what they had under way with them."""
        self.follow()
        for worker in self._workers.values():
            worker.under_way = 0

    def silent(self, patience: float) -> list[int]:
        """Workers that have links under way and have finished none for `patience` seconds, or are dead; told once."""
        found = []
        for worker in self._workers.values():
            quiet = time.monotonic() - worker.heard
            if worker.under_way and (quiet > patience or (quiet > SETTLED and not _lives(worker.pid))):
                worker.under_way = 0
                found.append(worker.pid)
        return found

    def live(self) -> Live:
        """How it goes."""
        (then, pictures, size), (now, *_) = self._past[0], self._past[-1]
        span = max(now - then, 1e-3)
        return Live(
            seconds=now - self._began,
            links=self._links,
            pictures=self._pictures,
            bytes=self._bytes,
            pictures_per_second=(self._pictures - pictures) / span,
            bytes_per_second=(self._bytes - size) / span,
            worst=tuple(
                (host, failed, self._asked[host], self._reasons[host].most_common(1)[0][0])
                for host, failed in self._failed.most_common(WORST)
            ),
        )

    def _count(self, worker: _Worker, line: str) -> None:
        host, reason, size, under_way = line.split("\t")
        worker.under_way = int(under_way)
        self._links += 1
        self._asked[host] += 1
        if reason:
            self._failed[host] += 1
            self._reasons.setdefault(host, Counter())[reason] += 1
        else:
            self._pictures += 1
            self._bytes += int(size)
        if len(self._asked) > HOSTS:
            kept = dict(self._failed.most_common(HOSTS // 2))
            self._failed = Counter(kept)
            self._asked = Counter({name: self._asked[name] for name in kept})
            self._reasons = {name: self._reasons[name] for name in kept}


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # without /proc nobody is said to be dead
    except ProcessLookupError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
