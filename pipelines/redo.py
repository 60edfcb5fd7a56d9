"""Asks again for what a download did not bring: the links that failed, those that may work now, or the open shards.

Rows that come now are new shards behind the others, written by a step of its own, `retry`, whose input are rejects of
the download: its commit says what went in, what came out and what was rejected once more. The tables of the first
rejects stay, as the record of what happened then; a row's last record counts.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import catalogue
from pipelines.canonical import keys_sha256, sample_key
from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.download import (
    NAME,
    TELEMETRY,
    DownloadSettings,
    Rows,
    download,
    download_step,
    fetch_and_store,
    note_path,
)
from pipelines.errors import HarmonError
from pipelines.fetch import Engine, FetchSettings, LiveCallback
from pipelines.manifest import IMAGES, SOURCE, Commit, rejects_group
from pipelines.outage import is_answer
from pipelines.rules import PASSING, FetchError, link_of
from pipelines.settings import parse
from pipelines.steps import ProgressCallback, Step, StepRun
from pipelines.tombstones import REASON
from pipelines.url_list import listed

RETRY, VERSION = "retry", 1
Only = Literal["failed", "transient", "missing"]
LISTED = frozenset({"duplicate_row_id", "unknown_task", "no_url", REASON})  # reasons that no server can change
OWN_GROUPS = {IMAGES, SOURCE, TELEMETRY}
CANARIES = 8  # links that answered before, asked again with each shard of a retry
SEARCHED = 64  # shards in which they are looked for


@dataclass(frozen=True)
class Redone:
    """What asking again has brought."""

    dataset: str
    only: Only
    asked: int
    """Rows that were asked for again."""
    recovered: int
    """Of them, those that are samples now."""
    rejected: dict[str, int]
    """Of them, those that are not, by reason."""

    def to_json(self) -> dict[str, Any]:
        """As `harmon download --json` prints it."""
        return asdict(self)

    def sentence(self) -> str:
        """As `harmon download` prints it."""
        if not self.asked:
            return f"{self.dataset}: nothing to ask for again ({self.only})."
        left = ", ".join(f"{reason} {number}" for reason, number in sorted(self.rejected.items()))
        return f"{self.dataset}: {self.recovered} of {self.asked} rows came now" + (f"; still {left}." if left else ".")


@dataclass(frozen=True)
class _Origin:
    """What a dataset's download was told, from its commit or from the note of one that goes on."""

    step_key: str
    source: Source
    links: Path
    settings: DownloadSettings
    how: FetchSettings
    commit: Commit | None


def redo(
    dataset: Dataset,
    only: Only,
    links: Path | None = None,
    engine: Engine | None = None,
    on_progress: ProgressCallback | None = None,
    on_live: LiveCallback | None = None,
    how: Mapping[str, Any] | None = None,
) -> Redone:
    """Ask again for the rows of `only`: all that failed at their link, those whose reason may have passed, or those of
    shards that are still open. List and way of fetching are those of the download, unless given here; `how` are
    the FetchSettings that are to be others.

    Every link of a retry may be dead, so nothing is told from their failures. A few links that answered before are
    asked with each shard: where they answer, its failures are believed, and where they do not it stays open.

    Raises:
        HarmonError: no download was begun here, its list is gone or changed, it is not complete (failed and
            transient), other steps have already built on it, or an outage keeps a shard open.
    """
    origin = _origin(dataset, links, engine, how or {})
    if only == "missing":
        return _finish(dataset, origin, on_progress, on_live)
    if origin.commit is None:
        raise HarmonError(
            f"the download of {dataset.root} is not complete; finish it first (harmon download {dataset.root} "
            "--only missing)"
        )
    if built := sorted(set(dataset.groups()) - OWN_GROUPS):
        raise HarmonError(
            f"{', '.join(built)} of {dataset.root} were computed from what the download brought, and no group is ever "
            "extended; ask again before other steps run, or download into a new dataset"
        )
    rounds = sum(commit.step == RETRY for commit in dataset.commits())
    wanted = pa.array(_rejected(dataset, only), pa.string())
    keys = [
        sample_key(origin.source.name, row_id)
        for table in _again(origin.links, wanted)
        for row_id in table.column("row_id").to_pylist()
    ]
    if not keys:
        return Redone(dataset.name, only, 0, 0, {})
    what = {"of": origin.step_key, "round": rounds, "only": only, "rows": keys_sha256(keys)}
    step = Step(RETRY, VERSION, {**what, **origin.settings.model_dump(mode="json")})
    head = dataset.head
    assert head is not None
    first = max(entry.shard for entry in head.files) + 1
    run = StepRun(dataset, step, on_progress)
    rows, canaries = Rows(_again(origin.links, wanted), len(keys)), _canaries(dataset)
    fetch_and_store(run, origin.source, rows, first, origin.settings, origin.how, on_live, canaries)
    commit = run.commit({origin.source.name: head.terms[origin.source.name]})
    return Redone(dataset.name, only, commit.rows_in, commit.rows_out, dict(commit.rejected))


def _again(links: Path, wanted: pa.Array) -> Iterator[pa.Table]:
    """The rows of a list with these row_ids, each once."""
    for table in listed(links):
        known = pc.is_in(table.column("row_id"), value_set=wanted)
        yield table.filter(pc.and_(known, pc.invert(table.column("again"))))


def _canaries(dataset: Dataset) -> list[str]:
    """At most CANARIES links that gave a picture before, of as many hosts as the first SEARCHED shards have.

    Of a dataset without any, links that were answered otherwise.
    """
    by_host: dict[str, list[str]] = {}
    for group, column in ((SOURCE, "sha256"), (rejects_group(NAME, ""), "reason")):
        for entry in list(dataset.entries(group))[:SEARCHED]:
            for row in dataset.table(entry.group, entry.shard, ["url", column]).to_pylist():
                if _may_be_asked(row["url"]) and row[column] and (column == "sha256" or is_answer(row[column])):
                    by_host.setdefault(link_of(row["url"]).host, []).append(row["url"])
            if len(by_host) >= CANARIES:
                break
        if by_host:
            break
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_host.values()))
    return list(itertools.islice(filter(None, rounds), CANARIES))


def _finish(
    dataset: Dataset, origin: _Origin, on_progress: ProgressCallback | None, on_live: LiveCallback | None
) -> Redone:
    """Go on with the download; the shards that stand are not asked for again."""
    run = StepRun(dataset, download_step(origin.source, origin.links, origin.settings))
    if run.committed:
        return Redone(dataset.name, "missing", 0, 0, {})
    stood = set(run.finished())
    download(dataset, origin.source, origin.links, origin.settings, origin.how, on_progress, on_live)
    recovered = sum(entry.rows for entry in dataset.entries(SOURCE) if entry.shard not in stood)
    rejected: Counter[str] = Counter()
    for entry in dataset.entries(rejects_group(NAME, origin.step_key)):
        if entry.shard not in stood:
            rejected.update(dataset.table(entry.group, entry.shard, ["reason"]).column("reason").to_pylist())
    return Redone(dataset.name, "missing", recovered + rejected.total(), recovered, dict(sorted(rejected.items())))


def _rejected(dataset: Dataset, only: Only) -> list[str]:
    """row_ids whose last record is a reject that `only` means."""
    last: dict[str, str] = {}
    for step in (NAME, RETRY):
        for entry in dataset.entries(rejects_group(step, "")):  # of a retry in the order of its rounds
            for row in dataset.table(entry.group, entry.shard, ["row_id", "url", "reason"]).to_pylist():
                last[row["row_id"]] = row["reason"] if _may_be_asked(row["url"]) else REASON
    for entry in dataset.entries(SOURCE):
        for row_id in dataset.table(SOURCE, entry.shard, ["row_id"]).column("row_id").to_pylist():
            last.pop(row_id, None)
    meant = [row_id for row_id, reason in last.items() if reason not in LISTED]
    return meant if only == "failed" else [row_id for row_id in meant if last[row_id] in PASSING]


def rejected_now(dataset: Dataset) -> dict[str, int]:
    """Rows that are rejected, by reason, each by its last record: one that a retry asked for again is in two."""
    commits = dataset.commits()
    total: Counter[str] = Counter()
    for commit in commits:
        total.update(commit.rejected)
    if not any(commit.step == RETRY for commit in commits):
        return dict(total)
    last: dict[str, str] = {}
    for step in (NAME, RETRY):
        for entry in dataset.entries(rejects_group(step, "")):
            for row in dataset.table(entry.group, entry.shard, ["key", "reason"]).to_pylist():
                total.subtract([last[row["key"]]] if row["key"] in last else [])
                last[row["key"]] = row["reason"]
    for entry in dataset.entries(SOURCE):
        kept = dataset.table(SOURCE, entry.shard, ["key"]).column("key").to_pylist()
        total.subtract(last[key] for key in kept if key in last)
    return {reason: count for reason, count in total.items() if count > 0}


def _may_be_asked(url: str | None) -> bool:
    """Whether the link itself is sound; what it redirects to may change."""
    try:
        return bool(url and link_of(url))
    except FetchError:
        return False


def _origin(dataset: Dataset, links: Path | None, engine: Engine | None, how: Mapping[str, Any]) -> _Origin:
    """What the download was told. Raises HarmonError where there is none, or its list is not what it was."""
    commit = next((commit for commit in dataset.commits() if commit.step == NAME), None)
    if commit is not None:
        key, configuration, note = commit.step_key, dict(commit.configuration), dict(commit.context)
    else:
        key, configuration, note = _begun(dataset)
    if links is None and "list" not in note:
        raise HarmonError(f"the download of {dataset.root} did not note its list; name the file with --list")
    links = links or Path(note["list"])
    if "source" in note:  # as it was resolved: a list or entry of the user's own is in no catalogue
        source = parse(Source, note["source"], str(dataset.root))
    else:
        source = catalogue.source(configuration["source"])
    said = {name: value for name, value in configuration.items() if name not in {"source", "terms", "list"}}
    settings = parse(
        DownloadSettings, said | {"engine": engine or note.get("engine", "img2dataset")}, str(dataset.root)
    )
    if download_step(source, links, settings).key != key:
        raise HarmonError(
            f"{links} is not the list that {dataset.root} was downloaded from; name that list with --list, or download "
            "into a new dataset"
        )
    fetching = parse(FetchSettings, note.get("fetch", {}) | dict(how), "--fetch")
    return _Origin(key, source, links, settings, fetching, commit)


def _begun(dataset: Dataset) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Step key, configuration and note of the one download that goes on here."""
    found = []
    for path in dataset.store.list("steps"):
        if path.endswith("/step.json"):
            identity = json.loads(dataset.store.read(path))
            if identity.get("step") == NAME:
                found.append((path.split("/")[1], identity["configuration"]))
    if len(found) != 1:
        raise HarmonError(f"{dataset.root} has {len(found)} downloads that were begun; run the recipe that began it")
    key, configuration = found[0]
    note = note_path(dataset, key)
    return key, configuration, json.loads(note.read_bytes()) if note.exists() else {}
