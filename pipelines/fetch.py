"""Fetches links below a landing folder, through img2dataset in its own environment or the native engine.

Either runs as a child behind the guard and writes img2dataset's layout (`pipelines.landed`). A worker of img2dataset
that falls silent is killed, and its shard done again; so is a shard that an engine leaves out.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.children import spawn, stop
from pipelines.errors import HarmonError
from pipelines.landed import Landed, complete, digits_of
from pipelines.rules import Rules
from pipelines.settings import Settings
from pipelines.traffic import Live, Traffic

LANDING = Path(__file__).with_name("landing.py")
INTERPRETER = "HARMON_IMG2DATASET_PYTHON"
DEFAULT_INTERPRETER = Path(__file__).parents[1] / ".venv-img2dataset" / "bin" / "python"
ATTEMPTS = 3  # runs of the engine in a row that land nothing
BACKLOG = 16  # shards that have landed and wait to be stored; beyond, no further links are taken up
POLL = 0.1  # seconds between looks at the landing folder
LIVE_EVERY = 1.0  # seconds between two calls of `on_live`

Engine = Literal["img2dataset", "native"]
LiveCallback = Callable[[Live], None]

log = logging.getLogger(__name__)


class FetchSettings(Settings):
    """How links are fetched; nothing here changes what comes of a link that answers."""

    processes: int = Field(default=2, ge=1)
    """Worker processes of img2dataset, each at one shard; the native engine has one, and so many shards open."""
    threads: int = Field(default=32, ge=1)
    """Connections of each process; the native engine has those of all."""
    timeout: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection or for more bytes."""
    max_seconds: float = Field(default=60.0, gt=0)
    """Seconds of being connected for one link: attempts, redirects, headers and body together."""
    retries: int = Field(default=2, ge=0)
    """Further attempts after a transient failure, with growing random pauses."""
    per_host: int = Field(default=8, ge=1)
    """Connections to one host at a time."""
    per_second: float = Field(default=50.0, gt=0)
    """Requests to one host in a second."""
    max_pause: float = Field(default=60.0, ge=0)
    """Seconds that a host's Retry-After is waited for; its links fail as `paused` where it asks for more."""
    user_agent: str = "Mozilla/5.0 (compatible; harmon)"
    """What servers are told; some want an address to write to."""
    patience: float = Field(default=300.0, gt=0)
    """Seconds without a finished link after which a worker is killed, and without any after which the engine is."""
    outage_share: float = Field(default=0.5, gt=0, le=1)
    """A shard stays open where a larger share of its links than this reached no server; 1: never."""


@dataclass(frozen=True)
class Links:
    """The links of one shard, in a Parquet file with the column url, so that a list of any length is held on disk."""

    path: Path
    count: int


def write_links(path: Path, urls: Sequence[str]) -> Links:
    """Put links into a new file."""
    pq.write_table(pa.table({"url": pa.array(urls, pa.string())}), path)
    return Links(path, len(urls))


def fetch(
    links: Mapping[int, Links],
    folder: Path,
    rules: Rules,
    how: FetchSettings,
    engine: Engine = "img2dataset",
    on_live: LiveCallback | None = None,
) -> Generator[Landed, None, None]:
    """Fetch the links of each shard (at least one each) below `folder`; yields shards as they land.

    `rules` says what may be fetched; how is taken from `how`. `on_live` is told about once a second how it goes.

    Raises:
        HarmonError: img2dataset is not installed, or the engine keeps failing; the message holds the end of its log.
    """
    rules = Rules(
        **asdict(rules)
        | {
            name: getattr(how, name)
            for name in ("timeout", "max_seconds", "retries", "per_host", "per_second", "max_pause", "user_agent")
        }
    )
    missing, attempt, fruitless = dict(links), 0, 0
    traffic = Traffic(folder / "traffic")
    while missing and fruitless < ATTEMPTS:
        before = len(missing)
        for landed in _run(missing, folder / f"attempt-{attempt}", rules, how, engine, traffic, on_live):
            del missing[landed.shard]
            yield landed
        attempt, fruitless = attempt + 1, fruitless + 1 if len(missing) == before else 0
    if missing:
        said = (folder / f"attempt-{attempt - 1}" / "log").read_text(errors="replace").splitlines()
        raise HarmonError(
            f"{engine} left {len(missing)} shards unfinished {ATTEMPTS} times; it said: {' / '.join(said[-5:])}"
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
    links: Mapping[int, Links],
    folder: Path,
    rules: Rules,
    how: FetchSettings,
    engine: Engine,
    traffic: Traffic,
    on_live: LiveCallback | None,
) -> Iterator[Landed]:
    """One run of the engine, watched; ends when it ends, also when it has left shards out."""
    shards = sorted(links)
    largest = max(one.count for one in links.values())
    _name_inputs(links, folder / "in")
    output = folder / "out"
    output.mkdir()
    traffic.hold(False)
    command = _command(folder, largest, rules, how, engine, traffic.folder)
    with (folder / "log").open("wb") as out:
        child = spawn(command, env=_environment(folder), cwd=folder, output=out)
        try:
            landed: set[int] = set()
            killed, heard, told = 0, time.monotonic(), 0.0
            while True:
                ended = child.poll() is not None  # looked at first, so that what it wrote last is not missed
                traffic.follow()
                waiting = sorted(complete(output, landed))
                traffic.hold(len(waiting) > BACKLOG)
                for number in waiting[:1]:
                    landed.add(number)
                    brought = Landed(shards[number], output, number, links[shards[number]].count, digits_of(largest))
                    if brought.complete:
                        yield brought
                    heard = time.monotonic()  # the caller may have taken long
                if on_live and (len(landed) == len(shards) or time.monotonic() - told > LIVE_EVERY):
                    told = time.monotonic()
                    on_live(traffic.live())
                if len(landed) == len(shards):
                    return  # img2dataset may hang at its end
                if waiting:
                    continue
                if ended or time.monotonic() - max(heard, traffic.heard) > how.patience:
                    return
                killed += _kill_silent(traffic, how.patience, child.pid)
                if killed and len(landed) + killed >= len(shards):
                    return  # nobody is left who could land another: the pool waits for the dead for ever
                time.sleep(POLL)
        finally:
            stop(child)
            traffic.end()


def _kill_silent(traffic: Traffic, patience: float, group: int) -> int:
    """Kill the workers that have fallen silent in the middle of a shard; how many there were, dead ones included.

    A process that is not of the engine's `group` has only the number of a worker that is gone, and is left alone.
    """
    silent = traffic.silent(patience)
    for worker in silent:
        log.warning("worker %d is dead or has been silent for %g s: its shard is done again", worker, patience)
        with suppress(ProcessLookupError):
            if os.getpgid(worker) == group:
                os.kill(worker, signal.SIGKILL)
    return len(silent)


def _name_inputs(links: Mapping[int, Links], folder: Path) -> None:
    """The input files so named that an engine takes them in order, numbered from 0."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(sorted(links)):
        os.link(links[shard].path, folder / f"{number:06d}.parquet")


def _command(folder: Path, largest: int, rules: Rules, how: FetchSettings, engine: Engine, traffic: Path) -> list[str]:
    arguments: dict[str, Any]
    if engine == "native":
        python = Path(sys.executable)
        arguments = {
            "inputs": str(folder / "in"),
            "output": str(folder / "out"),
            "connections": how.processes * how.threads,
            "shards": how.processes,
            "digits": digits_of(largest),
        }
    else:
        python = interpreter()
        workers = min(how.processes, how.per_host)  # each worker keeps its share of a host's limits
        rules = Rules(
            **asdict(rules) | {"per_host": rules.per_host // workers, "per_second": rules.per_second / workers}
        )
        arguments = {
            "url_list": str(folder / "in"),
            "input_format": "parquet",
            "output_folder": str(folder / "out"),
            "output_format": "webdataset",
            "number_sample_per_shard": largest,
            "processes_count": workers,
            "thread_count": how.threads,
            "timeout": how.timeout,
            "resize_mode": "no",
            "disable_all_reencoding": True,  # the bytes as they came
            "extract_exif": False,
            "compute_hash": None,
            "retries": 0,  # its own retries ask again at once, after a 404 too; the guard's are choosier
            "disallowed_header_directives": [],  # the guard obeys them before it reads the body
        }
    settings = {"engine": engine, "rules": asdict(rules), "traffic": str(traffic), "arguments": arguments}
    return [str(python), "-I", str(LANDING), json.dumps(settings)]


def _environment(folder: Path) -> dict[str, str]:
    """What an engine is told of this machine: no credentials, no proxies, a home of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
