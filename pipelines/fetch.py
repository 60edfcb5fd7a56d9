"""Fetches links with img2dataset, which runs in its own environment behind the guard, into a landing folder.

img2dataset writes one tar, one Parquet file of answers and, last, one JSON file of counts for each shard;
only with the last is a shard taken for complete. What it opens, follows and reads is decided by
`pipelines.guard`.
"""

import json
import os
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.children import spawn, stop
from pipelines.errors import HarmonError
from pipelines.guard import FetchError
from pipelines.settings import Settings

LANDING = Path(__file__).with_name("landing.py")
INTERPRETER = "HARMON_IMG2DATASET_PYTHON"
DEFAULT_INTERPRETER = Path(__file__).parents[1] / ".venv-img2dataset" / "bin" / "python"
ATTEMPTS = 3  # img2dataset runs until every shard has landed
POLL = 0.1  # seconds between looks at the landing folder
OPTED_OUT = "Use of image disallowed by X-Robots-Tag directive"  # img2dataset's words
TYPED = re.compile(r"([a-z0-9_]+): (.*)", re.DOTALL)  # the text of a FetchError


class FetchSettings(Settings):
    """How links are fetched; nothing here changes what comes of a link that answers."""

    processes: int = 2
    """Worker processes of img2dataset, each at one shard."""
    threads: int = 32
    """Connections of each process."""
    timeout: float = 10.0
    """Seconds to wait for a connection or for more bytes."""
    max_seconds: float = 60.0
    """Seconds for one link, redirects and body included."""
    retries: int = 2
    """Further attempts after a transient failure, with growing random pauses."""
    patience: float = 300.0
    """Seconds without a byte from anywhere after which img2dataset is stopped and started again."""


class Landed:
    """What img2dataset brought for the links of one shard; pictures are read one at a time."""

    def __init__(self, shard: int, folder: Path, number: int, links: int, digits: int) -> None:
        stem = folder / f"{number:05d}"
        self.shard = shard
        self._paths = [Path(f"{stem}{end}") for end in (".tar", ".parquet", "_stats.json")]
        tar, answers, stats = self._paths
        self.seconds = float(json.loads(stats.read_bytes())["duration"])
        table = pq.read_table(answers, columns=["key", "error_message"])
        positions = [int(key) % 10**digits for key in table.column("key").to_pylist()]
        self._errors = dict(zip(positions, table.column("error_message").to_pylist(), strict=True))
        with tarfile.open(tar, "r:") as members:
            self._members = {
                int(Path(m.name).stem) % 10**digits: (m.offset_data, m.size) for m in members if m.name.endswith(".jpg")
            }
        brought = {position for position, error in self._errors.items() if error is None}
        self.complete = len(self._errors) == links and brought == set(self._members)

    def reasons(self) -> list[str | None]:
        """For each link in turn why it gave no bytes, or None."""
        errors = (self._errors[position] for position in range(len(self._errors)))
        return [_typed(message).reason if message is not None else None for message in errors]

    def read(self, position: int) -> bytes:
        """The bytes that came from link number `position` of the shard, whatever they are.

        Raises:
            FetchError: the link gave none.
        """
        if (message := self._errors[position]) is not None:
            raise _typed(message)
        offset, size = self._members[position]
        with self._paths[0].open("rb") as tar:
            tar.seek(offset)
            return tar.read(size)

    def drop(self) -> None:
        """Delete the landing files."""
        for path in self._paths:
            path.unlink(missing_ok=True)  # the scratch they lie in goes with the last receipt


def fetch(
    links: Mapping[int, Sequence[str]], folder: Path, guard: Mapping[str, object], how: FetchSettings
) -> Iterator[Landed]:
    """Fetch the links of each shard (at least one each) below `folder`; yields shards as they land.

    `guard` holds the *what* fields of `pipelines.guard.Guard`: `allow` and `max_bytes`.

    Raises:
        HarmonError: img2dataset is not installed, or keeps failing; the message holds the end of its log.
    """
    missing = dict(links)
    for attempt in range(ATTEMPTS):
        attempt_folder = folder / f"attempt-{attempt}"
        for landed in _run(missing, attempt_folder, guard, how):
            del missing[landed.shard]
            yield landed
        if not missing:
            return
    log = (folder / f"attempt-{ATTEMPTS - 1}" / "log").read_text(errors="replace").splitlines()
    raise HarmonError(
        f"img2dataset left {len(missing)} shards unfinished {ATTEMPTS} times; it said: {' / '.join(log[-5:])}"
    )


def interpreter() -> Path:
    """The Python of img2dataset's environment.

    Raises:
        HarmonError: it is not there.
    """
    path = Path(os.environ.get(INTERPRETER) or DEFAULT_INTERPRETER)
    if not path.exists():
        raise HarmonError(f"img2dataset is not installed at {path}; run `make img2dataset` (or set {INTERPRETER})")
    return path


def _run(
    links: Mapping[int, Sequence[str]], folder: Path, guard: Mapping[str, object], how: FetchSettings
) -> Iterator[Landed]:
    """One run of img2dataset, watched; ends when it ends, also when it has left shards out."""
    shards = sorted(links)
    largest = max(len(urls) for urls in links.values())
    digits = len(str(largest - 1)) if largest > 1 else 0  # of the position within a shard, as img2dataset counts
    _write_links(links, folder / "in")
    output = folder / "out"
    output.mkdir()
    with (folder / "log").open("wb") as log:
        child = spawn(_command(folder, largest, guard, how), env=_environment(folder), cwd=folder, output=log)
        try:
            landed: set[int] = set()
            growth, since = 0, time.monotonic()
            while True:
                ended = child.poll() is not None  # looked at first, so that what it wrote last is not missed
                for number in sorted(_complete(output) - landed):
                    landed.add(number)
                    brought = Landed(shards[number], output, number, len(links[shards[number]]), digits)
                    if brought.complete:
                        yield brought
                if ended:
                    return
                size = sum(path.stat().st_size for path in output.glob("*.tar")) + len(landed)
                if size != growth:
                    growth, since = size, time.monotonic()
                elif time.monotonic() - since > how.patience:
                    return
                time.sleep(POLL)
        finally:
            stop(child)


def _write_links(links: Mapping[int, Sequence[str]], folder: Path) -> None:
    """One input file for each shard, so named that img2dataset takes them in order, numbered from 0."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(sorted(links)):
        pq.write_table(pa.table({"url": list(links[shard])}), folder / f"{number:06d}.parquet")


def _complete(output: Path) -> set[int]:
    """Numbers of the shards whose counts are written, as valid JSON."""
    numbers = set()
    for path in output.glob("*_stats.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:  # being written right now
            continue
        numbers.add(int(path.name.partition("_")[0]))
    return numbers


def _command(folder: Path, largest: int, guard: Mapping[str, object], how: FetchSettings) -> list[str]:
    rules = {**guard, "max_seconds": how.max_seconds, "retries": how.retries}
    arguments = {
        "url_list": str(folder / "in"),
        "input_format": "parquet",
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        "number_sample_per_shard": largest,
        "processes_count": how.processes,
        "thread_count": how.threads,
        "timeout": how.timeout,
        "resize_mode": "no",
        "disable_all_reencoding": True,  # the bytes as they came
        "extract_exif": False,
        "compute_hash": None,
        "retries": 0,  # its own retries ask again at once, after a 404 too; the guard's are choosier
    }
    return [str(interpreter()), "-I", str(LANDING), json.dumps({"guard": rules, "download": arguments})]


def _environment(folder: Path) -> dict[str, str]:
    """What img2dataset is told of this machine: no credentials, no proxies, a home of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}


def _typed(message: str) -> FetchError:
    """img2dataset's message for a link, as a reason and a detail."""
    if message == OPTED_OUT:
        return FetchError("opted_out", "the server asks that the picture not be used (X-Robots-Tag)")
    if message.startswith(("unknown url type", "Invalid IPv6 URL")):
        return FetchError("bad_url", "a link must begin with http:// or https://")
    if match := TYPED.fullmatch(message):
        return FetchError(match[1], match[2])
    return FetchError("fetch_failed", message[:200])
