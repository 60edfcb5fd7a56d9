"""The step that reads a published table of links into the list that the download step takes.

Rows that are turned away before anything is fetched (no link, a gate that is not passed, a broken record) are this
step's rejects. The list has the rest, so rows of the publisher = rows of the list + rejects of this step.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.canonical import sample_key
from pipelines.columns import LIST_SCHEMA, MD5, MD5_FIELD, REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings, download
from pipelines.errors import HarmonError
from pipelines.fetch import FetchSettings, LiveCallback
from pipelines.layouts import UrlTable
from pipelines.manifest import Commit
from pipelines.readers.files import NativeFiles, scratch_folder
from pipelines.readers.links import LinkReader
from pipelines.readers.rules import Reject, fields_of, sample_of
from pipelines.steps import ProgressCallback, Step, StepRun
from pipelines.terms import Acceptance, terms_record
from pipelines.tombstones import tombstones_beside

NAME, VERSION = "list", 1
BATCH = 10_000  # rows of the list written at a time
REJECTS_PER_SHARD = 100_000


def list_step(files: NativeFiles, rows_per_shard: int) -> Step:
    """The step that reads these tables."""
    what = {**files.described(), "rows_per_shard": rows_per_shard}  # the rejects' shards come after the download's
    return Step(NAME, VERSION, what)


def download_listed(
    dataset: Dataset,
    files: NativeFiles,
    settings: DownloadSettings,
    accepted: dict[str, Acceptance],
    how: FetchSettings | None = None,
    on_progress: ProgressCallback | None = None,
    on_live: LiveCallback | None = None,
) -> Commit:
    """List the links of `files`, then download them into `dataset`; the download's commit.

    The list stays in this machine's scratch, for links that are asked again later; it can be made anew.

    Raises as `pipelines.download.download` does; ConfigurationError where terms have to be accepted first.
    """
    terms = terms_record(files.source, accepted)
    if commit := listed_commit(dataset, files, settings):
        return commit
    run = StepRun(dataset, list_step(files, settings.rows_per_shard))
    links = scratch_folder() / "links" / f"{run.step.key}.parquet"
    _list(run, files, links, settings.rows_per_shard)
    run.commit({files.source.name: terms})
    return download(dataset, files.source, links, settings, how, on_progress, on_live)


def listed_commit(dataset: Dataset, files: NativeFiles, settings: DownloadSettings) -> Commit | None:
    """The commit of the download of exactly these files' links, or None."""
    if StepRun(dataset, list_step(files, settings.rows_per_shard)).committed is None:
        return None
    wanted = {"source": files.source.name, **settings.model_dump(mode="json")}
    for commit in dataset.commits():
        if commit.step == "download" and all(commit.configuration.get(name) == wanted[name] for name in wanted):
            return commit
    return None


def _list(run: StepRun, files: NativeFiles, links: Path, rows_per_shard: int) -> None:
    """Write the list, then one shard or more of rejects, numbered after those that the download will write."""
    links.parent.mkdir(parents=True, exist_ok=True)
    rows, barred = read_list_rows(files), tombstones_beside(run.dataset)
    listed = 0
    with tempfile.TemporaryDirectory(prefix="listing-", dir=scratch_folder()) as scratch:
        away, attempt = _Spill(Path(scratch)), Path(scratch) / "list.parquet"
        schema = LIST_SCHEMA.append(MD5_FIELD) if fields_of(files.layout).md5 else LIST_SCHEMA
        with pq.ParquetWriter(attempt, schema, compression="zstd") as out:
            while batch := list(itertools.islice(rows, BATCH)):
                good = [row for row in batch if not isinstance(row, Reject)]
                bad = [_reject(files.source.name, row) for row in batch if isinstance(row, Reject)]
                away.add([row | ({"url": None} if barred.bar_row(row["key"], row["url"]) else {}) for row in bad])
                out.write_table(pa.Table.from_pylist(good, schema))
                listed += len(good)
        if not listed:
            raise HarmonError(
                f"no row of {files.source.name} below {files.root} can be downloaded: {away.rows} were turned away"
            )
        attempt.replace(links)
        first = -(-listed // rows_per_shard)
        tables = dict(enumerate(away.tables(), start=first))
        for shard in run.pending(sorted(tables)):
            out_shard, table = run.shard(shard), pq.read_table(tables[shard])
            out_shard.columns("source", SOURCE_SCHEMA.empty_table())
            if table.num_rows:
                out_shard.rejects(table)
            out_shard.finish(rows_in=table.num_rows)


class _Spill:
    """Rejects on disk, in tables of one shard each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[dict[str, Any]] = []
        self._files: list[Path] = []
        self.rows = 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += len(rows)
        self._waiting += rows
        while len(self._waiting) >= REJECTS_PER_SHARD:
            self._write(REJECTS_PER_SHARD)

    def tables(self) -> list[Path]:
        """The tables; at least one, so that the step has a shard to commit."""
        if self._waiting or not self._files:
            self._write(len(self._waiting))
        return self._files

    def _write(self, rows: int) -> None:
        self._files.append(self._folder / f"{len(self._files)}.parquet")
        pq.write_table(pa.Table.from_pylist(self._waiting[:rows], REJECT_SCHEMA), self._files[-1])
        self._waiting = self._waiting[rows:]


def read_list_rows(files: NativeFiles) -> Iterator[dict[str, Any] | Reject]:
    """Every row of the tables, as a row of the list or a reject."""
    layout = files.layout
    assert isinstance(layout, UrlTable)
    reader = LinkReader(files.root, files.tables, layout)
    for file in reader.files:
        for native in reader.rows(file):
            sample = sample_of(files.source, layout, native, is_link=True)
            if isinstance(sample, Reject):
                yield sample
            else:
                yield {
                    "row_id": sample.row_id,
                    "url": sample.url,
                    "caption": sample.caption,
                    "task": sample.task,
                    "conversations": sample.conversations,
                    "licence": sample.licence,
                    **({MD5: sample.md5} if layout.fields.md5 else {}),
                }


def _reject(source: str, row: Reject) -> dict[str, Any]:
    return {
        "key": sample_key(source, row.row_id),
        "source": source,
        "row_id": row.row_id,
        "url": row.url,
        "reason": row.reason,
        "detail": row.detail,
    }
