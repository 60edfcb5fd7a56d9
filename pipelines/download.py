"""The download step: a list of links becomes shards of checked pictures, and a reason for every link that
does not.

Each row of the list ends once: as a row of the dataset (with its picture, or without one where its task is
text), or in the rejects. Rows keep the list's order, so the result depends on the answers alone and not on
when they came.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, IPvAnyNetwork

from pipelines.canonical import sample_key, sha256_hex
from pipelines.catalogue import Source
from pipelines.columns import LIST_SCHEMA, REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.fetch import FetchSettings, Landed, fetch
from pipelines.guard import FetchError
from pipelines.manifest import Commit
from pipelines.normalise import BadPicture, Limits, normalise
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, ShardOutput, Step, StepRun
from pipelines.tombstones import REASON, Tombstones, tombstones_beside

NAME, VERSION = "download", 1
TELEMETRY = "download.telemetry"
LIST_COLUMNS = tuple(LIST_SCHEMA.names)
UNREACHED = frozenset({"dead_link", "timeout"})  # reasons of a link when nothing answered at all
OUTAGE_LINKS = 5  # so many links of a shard, all unreached, are an outage; fewer may just be dead

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


class BadRow(Exception):
    """A row of the list that cannot become a sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def download_step(source: Source, links: Path, settings: DownloadSettings) -> Step:
    """The step that downloads the list `links` (Parquet) of `source`. Raises HarmonError where it is absent."""
    if not links.is_file():
        raise HarmonError(f"the list of links {links} does not exist; publish or name it first")
    with links.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    what = {"source": source.name, "terms": source.terms, "list": digest, **settings.model_dump(mode="json")}
    return Step(NAME, VERSION, what)


def download(
    dataset: Dataset,
    source: Source,
    links: Path,
    settings: DownloadSettings,
    how: FetchSettings | None = None,
    on_progress: ProgressCallback | None = None,
) -> Commit:
    """Download the list `links` of `source` into `dataset`; what an earlier attempt finished is kept.

    The list has the columns of LIST_SCHEMA, or of types that can be cast to it. A row without url (null) must
    be of task text and becomes a row without picture; an empty url is a bad one. Groups written: images,
    source, download.telemetry.

    Raises:
        HarmonError: the list is no such file or has a column of another type, img2dataset is absent or keeps
            failing, or no link of a shard could be reached; such a shard stays open, so that the next run
            asks again.
    """
    run = StepRun(dataset, download_step(source, links, settings), on_progress)
    if run.committed:
        return run.committed
    barred = tombstones_beside(dataset)
    shards = _shards(_judged(_read_list(links), source, barred), settings.rows_per_shard)
    pending = run.pending(range(len(shards)))
    if pending:
        tables = {shard: shards[shard] for shard in pending}
        _fetch_all(run, source, tables, settings, how or FetchSettings(), barred)
    return run.commit({source.name: {"licence": source.licence, "terms": source.terms}})


def _read_list(links: Path) -> pa.Table:
    """The list, with a column `again` that is true for a row whose row_id an earlier row has."""
    try:
        table = pq.read_table(links, columns=list(LIST_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise HarmonError(f"{links} is no Parquet file with the columns {', '.join(LIST_COLUMNS)}: {error}") from None
    missing = [name for name in LIST_COLUMNS if name not in table.column_names]
    if missing or not table.num_rows or table.column("row_id").null_count:
        what = f"no column {', '.join(missing)}" if missing else "no rows, or rows without row_id"
        raise HarmonError(f"the list {links} has {what}; every row of a list of links needs a row_id")
    table = pa.table([_typed(table.column(field.name), field, links) for field in LIST_SCHEMA], schema=LIST_SCHEMA)
    seen: set[str] = set()
    again = []
    for row_id in table.column("row_id").to_pylist():
        again.append(row_id in seen)
        seen.add(row_id)
    return table.append_column("again", pa.array(again))


def _judged(table: pa.Table, source: Source, barred: Tombstones) -> pa.Table:
    """The list, with a column `forgotten` that is true for a row that a tombstone keeps out: it is not fetched.

    Tombstones are no part of the step's key: a list downloaded again gives the same rows without those.
    """
    rows = zip(table.column("row_id").to_pylist(), table.column("url").to_pylist(), strict=True)
    forgotten = [barred.bar_row(sample_key(source.name, row_id), url) for row_id, url in rows]
    return table.append_column("forgotten", pa.array(forgotten, pa.bool_()))


def _is_fetched(row: Row) -> bool:
    return bool(row["url"]) and not row["forgotten"]


def _typed(column: pa.ChunkedArray, field: pa.Field, links: Path) -> pa.ChunkedArray:
    """A column of the list as `field` says, its text checked to be UTF-8, which reading does not do."""
    try:
        typed = column.cast(field.type)
        typed.validate(full=True)
    except pa.ArrowException as error:
        raise HarmonError(
            f"the column {field.name} of the list {links} is {column.type}, which does not become {field.type} "
            f"({error}); write that column anew"
        ) from None
    return typed


def _shards(table: pa.Table, rows: int) -> list[pa.Table]:
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def _fetch_all(
    run: StepRun,
    source: Source,
    tables: Mapping[int, pa.Table],
    settings: DownloadSettings,
    how: FetchSettings,
    barred: Tombstones,
) -> None:
    """Fetch and store all of `tables`; raises HarmonError for those that an outage kept out of reach."""
    cut_off = []
    for shard, landed in _landings(run, tables, settings, how):
        if landed is not None and _is_outage(landed, bool(run.finished())):
            cut_off.append(shard)
            continue
        _store(run.shard(shard), source, tables[shard], landed, settings.limits, barred)
        if landed is not None:
            landed.drop()
    if cut_off:
        raise HarmonError(
            f"no link of shard {', '.join(map(str, cut_off))} of {source.name} could be reached: it looks "
            "like an outage, so nothing of them is marked done; see to the network (or server) and run again"
        )


def _landings(
    run: StepRun, tables: Mapping[int, pa.Table], settings: DownloadSettings, how: FetchSettings
) -> Iterator[tuple[int, Landed | None]]:
    """Each shard with what was fetched for it (None: it has no links), as soon as that is complete.

    All are fetched by one run of img2dataset, whose start takes longer than a small shard. It lands in the
    scratch of the last shard, which is therefore handed out last: its receipt deletes the folder.
    """
    last = max(tables)
    links = {
        shard: [row["url"] for row in table.select(["url", "forgotten"]).to_pylist() if _is_fetched(row)]
        for shard, table in tables.items()
    }
    wanted = {shard: urls for shard, urls in links.items() if urls}
    guard = {"allow": [str(network) for network in settings.allow], "max_bytes": settings.max_bytes}
    yield from ((shard, None) for shard in tables if shard not in wanted and shard != last)
    final = None
    for landed in fetch(wanted, run.scratch(last), guard, how) if wanted else ():
        if landed.shard == last:
            final = landed
        else:
            yield landed.shard, landed
    yield last, final


def _is_outage(landed: Landed, others_answered: bool) -> bool:
    """Whether nothing at all was reached; a few dead links are believed where other shards had answers."""
    reasons = landed.reasons()
    return all(reason in UNREACHED for reason in reasons) and (len(reasons) >= OUTAGE_LINKS or not others_answered)


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
            facts = _add_picture(out, identity, row, data, limits) if data is not None else {}
        except (BadRow, FetchError, BadPicture) as error:
            url = None if error.reason == REASON else row["url"]  # no listing shows what is forgotten
            rejected.append({**identity, "url": url, "reason": error.reason, "detail": error.detail})
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
