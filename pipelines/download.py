"""The download step: a list of links becomes shards of checked pictures, and a reason for every link that
does not.

Each row of the list ends once: as a row of the dataset (with its picture, or without one where its task is
text), or in the rejects. Rows keep the list's order, so the result depends on the answers alone and not on
when they came.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, IPvAnyNetwork

from pipelines.canonical import sample_key, sha256_hex
from pipelines.catalogue import Source
from pipelines.columns import MD5, REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.fetch import Engine, FetchSettings, Links, LiveCallback, fetch, write_links
from pipelines.landed import Landed
from pipelines.manifest import Commit
from pipelines.normalise import BadPicture, Limits, normalise
from pipelines.outage import FEW, Watch
from pipelines.rules import OPT_OUT, FetchError, OptOut, Rules, link_of
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, ShardOutput, Step, StepRun
from pipelines.tombstones import REASON, Tombstones, tombstones_beside
from pipelines.traffic import Live
from pipelines.url_list import cut, list_sha256, listed, rows_of
from pipelines.workspace import WORK

NAME, VERSION = "download", 3
TELEMETRY = "download.telemetry"
OUTAGE_SHARDS = 3  # so many shards in a row that an outage kept open, and no more are tried
LOG_EVERY = 10.0  # seconds between two lines about a download's progress

log = logging.getLogger(__name__)

TASKS = ("text", "image2text", "text2image")

Row = dict[str, Any]


class DownloadSettings(Settings):
    """What is computed from a list: part of the step's key."""

    rows_per_shard: int = Field(default=1000, ge=1)
    """Rows of the list in each shard."""
    max_bytes: int = Field(default=32 << 20, ge=1)
    """Bytes of one picture; a larger one is not read to its end."""
    allow: tuple[IPvAnyNetwork, ...] = ()
    """Networks open besides the public internet, as in 127.0.0.1/32 for a server on this machine."""
    limits: Limits = Limits()
    """Limits of a decoded picture."""
    opt_out: tuple[OptOut, ...] = OPT_OUT
    """Directives of the header X-Robots-Tag that are obeyed; an empty list obeys none."""
    engine: Engine = Field(default="img2dataset", exclude=True)
    """What fetches the links; the result does not depend on it, so neither does the step's key."""

    @property
    def rules(self) -> Rules:
        """What may be fetched."""
        allow = tuple(str(network) for network in self.allow)
        return Rules(allow=allow, max_bytes=self.max_bytes, opt_out=self.opt_out)


class BadRow(Exception):
    """A row of the list that cannot become a sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def download_step(source: Source, links: Path, settings: DownloadSettings) -> Step:
    """The step that downloads the list `links` (Parquet) of `source`. Raises HarmonError where it is absent."""
    digest = list_sha256(links)
    what = {"source": source.name, "terms": source.terms, "list": digest, **settings.model_dump(mode="json")}
    return Step(NAME, VERSION, what)


def download(
    dataset: Dataset,
    source: Source,
    links: Path,
    settings: DownloadSettings,
    how: FetchSettings | None = None,
    on_progress: ProgressCallback | None = None,
    on_live: LiveCallback | None = None,
) -> Commit:
    """Download the list `links` of `source` into `dataset`; what an earlier attempt finished is kept.

    The list has the columns of LIST_SCHEMA, or of types that can be cast to it, and may have `md5`. A row without
    url (null) must be of task text and becomes a row without picture; an empty url is a bad one. Groups written:
    images, source, download.telemetry. How it goes is logged, and told to `on_live`.

    Raises:
        HarmonError: the list is no such file or has a column of another type, the engine is absent or keeps
            failing, or what kept links of a shard out of reach looks like an outage; such a shard stays open,
            so that the next run asks again.
    """
    how = how or FetchSettings()
    run = StepRun(dataset, download_step(source, links, settings), on_progress)
    if run.committed:
        return run.committed
    origin = {
        "list": str(links.absolute()),
        "engine": settings.engine,
        "fetch": how.model_dump(),
        "source": source.model_dump(mode="json"),
    }
    note = note_path(dataset, run.step.key)
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(origin))
    part.replace(note)
    fetch_and_store(run, source, Rows(listed(links), rows_of(links)), 0, settings, how, on_live)
    return run.commit({source.name: {"licence": source.licence, "terms": source.terms}}, origin)


def note_path(dataset: Dataset, step_key: str) -> Path:
    """Where a download that is not committed yet notes its list, its source and how it fetches; afterwards the commit
    does."""
    return dataset.store.work(f"{WORK}/{step_key}/origin.json")


@dataclass(frozen=True)
class Rows:
    """Rows of a list that are to be fetched: tables as `url_list.listed` gives them, read once, and how many rows."""

    tables: Iterable[pa.Table]
    count: int


def fetch_and_store(
    run: StepRun,
    source: Source,
    rows: Rows,
    first: int,
    settings: DownloadSettings,
    how: FetchSettings,
    on_live: LiveCallback | None = None,
    canaries: Sequence[str] = (),
) -> None:
    """Do the shards of `run` that are open: `rows` from shard number `first` on. Memory holds a shard's rows at a time.

    `canaries` are links that answered before: asked again with each shard, they tell dead links from an outage.

    Raises:
        HarmonError: as `download`.
    """
    shards = -(-rows.count // settings.rows_per_shard)
    if pending := set(run.pending(range(first, first + shards))):
        barred = tombstones_beside(run.dataset)
        with run.together() as folder:
            spool = _Spool(folder / "rows", canaries)
            for shard, table in enumerate(cut(rows.tables, settings.rows_per_shard), start=first):
                if shard in pending:
                    spool.add(shard, _judged(table, source, barred))
            _fetch_all(run, source, spool, folder, settings, how, barred, _Log(on_live))


class _Spool:
    """The shards that are open, on disk: the rows of each, and the links among them with the canaries behind."""

    def __init__(self, folder: Path, canaries: Sequence[str]) -> None:
        folder.mkdir()
        self._folder = folder
        self._canaries = list(canaries)
        self.links: dict[int, Links] = {}
        """Of the shards that have any."""
        self.shards: list[int] = []

    def add(self, shard: int, table: pa.Table) -> None:
        """One more shard."""
        self.shards.append(shard)
        pq.write_table(table, self._folder / f"{shard}.rows", compression="zstd")
        if urls := [row["url"] for row in table.select(["url", "forgotten"]).to_pylist() if _is_fetched(row)]:
            self.links[shard] = write_links(self._folder / f"{shard}.links", [*urls, *self._canaries])

    def table(self, shard: int) -> pa.Table:
        """The rows of a shard."""
        return pq.read_table(self._folder / f"{shard}.rows")

    def reasons(self, landed: Landed) -> tuple[list[str | None], list[str | None]]:
        """Of the shard's own links, and of the canaries, why each gave no bytes, or None."""
        every = landed.reasons()
        own = len(every) - len(self._canaries)
        return every[:own], every[own:]


class _Log:
    """Logs how it goes now and then, and passes it on."""

    def __init__(self, on_live: LiveCallback | None) -> None:
        self._on_live = on_live
        self._logged = 0.0

    def __call__(self, live: Live) -> None:
        if live.seconds - self._logged >= LOG_EVERY:
            self._logged = live.seconds
            log.info("%s", live.sentence())
        if self._on_live:
            self._on_live(live)


def _judged(table: pa.Table, source: Source, barred: Tombstones) -> pa.Table:
    """The list, with a column `forgotten` that is true for a row that a tombstone keeps out: it is not fetched.

    Tombstones are no part of the step's key: a list downloaded again gives the same rows without those.
    """
    rows = zip(table.column("row_id").to_pylist(), table.column("url").to_pylist(), strict=True)
    forgotten = [barred.bar_row(sample_key(source.name, row_id), url) for row_id, url in rows]
    return table.append_column("forgotten", pa.array(forgotten, pa.bool_()))


def _is_fetched(row: Row) -> bool:
    """Whether the row's link may be asked at all."""
    if not row["url"] or row["forgotten"]:
        return False
    try:
        link_of(row["url"])
    except FetchError:
        return False
    return True


def _fetch_all(
    run: StepRun,
    source: Source,
    spool: _Spool,
    folder: Path,
    settings: DownloadSettings,
    how: FetchSettings,
    barred: Tombstones,
    on_live: LiveCallback,
) -> None:
    """Fetch and store what is spooled; raises HarmonError for the shards that an outage kept out of reach."""

    def store(shard: int, landed: Landed | None) -> None:
        _store(run.shard(shard), source, spool.table(shard), landed, settings.limits, barred)
        if landed is not None:
            landed.drop()

    for shard in spool.shards:
        if shard not in spool.links:
            store(shard, None)
    if not spool.links:
        return
    watch = Watch(how.outage_share)
    cut_off: list[int] = []
    aside: list[Landed] = []
    in_a_row = 0
    arriving = fetch(spool.links, folder, settings.rules, how, settings.engine, on_live)
    with contextlib.closing(arriving):
        for landed in arriving:
            reasons, canaries = spool.reasons(landed)
            if watch.is_cut_off(reasons, canaries):
                if len(reasons) < FEW:
                    aside.append(landed)
                else:
                    cut_off.append(landed.shard)
                    landed.drop()
                in_a_row += 1
                if in_a_row == OUTAGE_SHARDS:
                    break
            else:
                in_a_row = 0
                store(landed.shard, landed)
    for landed in aside:  # judged again: others may have answered since, which tells a few dead links from an outage
        if watch.is_cut_off(*spool.reasons(landed)):
            cut_off.append(landed.shard)
        else:
            store(landed.shard, landed)
    if cut_off:
        raise HarmonError(
            f"most links of shard {', '.join(map(str, sorted(cut_off)))} of {source.name} reached no server: it looks "
            "like an outage, so nothing of them is marked done; see to the network (or server) and run again, or "
            "give --fetch outage_share=1 (in a recipe fetch.outage_share) if the links are dead indeed"
        )


def _store(
    out: ShardOutput, source: Source, table: pa.Table, landed: Landed | None, limits: Limits, barred: Tombstones
) -> None:
    """Write one shard: every row of `table` becomes a row or a reject, in order."""
    kept: list[Row] = []
    rejected: list[Row] = []
    position = 0
    for row in table.to_pylist():
        identity = {
            "key": sample_key(source.name, row["row_id"]),
            "source": source.name,
            "row_id": row["row_id"],
        }
        link, position = position, position + _is_fetched(row)
        try:
            _check(row)
            data = landed.read(link) if landed and row["url"] else None
            if data is not None and barred.bar_bytes(sha256_hex(data)):
                raise BadRow(REASON, "its bytes are in a tombstone")
            if data is not None and row[MD5]:
                _compare(data, row[MD5])
            facts = _add_picture(out, identity, row, data, limits) if data is not None else {}
        except (BadRow, FetchError, BadPicture) as error:
            answered = "HTTP 200: " if isinstance(error, BadPicture) else ""
            url = None if error.reason == REASON else row["url"]  # no listing shows what is forgotten
            rejected.append({**identity, "url": url, "reason": error.reason, "detail": answered + error.detail})
            continue
        kept.append({**identity, **_passed_on(row), "terms_class": source.terms, **facts})
    columns = pa.Table.from_pylist(kept, SOURCE_SCHEMA)
    out.columns("source", columns)
    seconds = pa.array([landed.seconds if landed else None] * len(kept), pa.float64())
    out.columns(TELEMETRY, pa.table({"key": columns.column("key"), "shard_seconds": seconds}))
    if rejected:
        out.rejects(pa.Table.from_pylist(rejected, REJECT_SCHEMA))
    out.finish(rows_in=table.num_rows)


def _check(row: Row) -> None:
    """Refuse a row that cannot become a sample, whatever its link gives."""
    if row["forgotten"]:
        raise BadRow(REASON, "its key or link is in a tombstone")
    if row["again"]:
        raise BadRow("duplicate_row_id", "an earlier row of the list has this row_id")
    if row["task"] not in TASKS:
        raise BadRow("unknown_task", f"{row['task']!r} is none of {', '.join(TASKS)}")
    if row["url"] == "":
        raise BadRow("bad_url", "the link is empty")
    if row["url"] is None and row["task"] != "text":
        raise BadRow("no_url", f"a row of task {row['task']} needs a link")
    if row["url"]:
        link_of(row["url"])


def _compare(data: bytes, md5: str) -> None:
    """Refuse another file than the one that the list means: a publisher may have put it in its place."""
    came = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if came != md5.lower():
        raise BadRow("changed", f"the file has the MD5 {came}, and the list says {md5}")


def _passed_on(row: Row) -> Row:
    return {name: row[name] for name in ("url", "caption", "task", "conversations", "licence")}


def _add_picture(out: ShardOutput, identity: Row, row: Row, data: bytes, limits: Limits) -> Row:
    """Store a fetched picture; returns its columns: stored type and size, number and hash of what came."""
    picture = normalise(data, limits)
    view = {**identity, **_passed_on(row), "width": picture.width, "height": picture.height}
    out.images().add(identity["key"], picture.data, picture.extension, view)
    return {
        "ext": picture.extension,
        "width": picture.width,
        "height": picture.height,
        "bytes": len(data),
        "sha256": sha256_hex(data),
    }
