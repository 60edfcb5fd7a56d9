"""From a catalogue entry to a dataset: its files found or fetched, then read by what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.errors import ConfigurationError
from pipelines.fetch import FetchSettings, LiveCallback
from pipelines.hub import Told, fetch_files, list_files, pin, pinned, unpin
from pipelines.ingest import IngestSettings, ingest, ingest_step
from pipelines.layouts import UrlTable
from pipelines.listing import download_listed, listed_commit
from pipelines.manifest import Commit
from pipelines.overrides import add_captions
from pipelines.readers.files import NativeFiles, asked_of, local_files
from pipelines.steps import ProgressCallback, StepRun
from pipelines.terms import Acceptance, check_accepted


@dataclass(frozen=True)
class Acquisition:
    """How an entry is turned into a dataset."""

    settings: DownloadSettings
    """What is computed; `allow` concerns links alone."""
    accepted: dict[str, Acceptance]
    folder: Path | None = None
    """Where the publisher's files lie; None: they are fetched from the hub."""
    only: tuple[str, ...] = ()
    """Patterns of the files to read; empty: all."""
    how: FetchSettings | None = None
    """How links are fetched."""


def acquire(
    dataset: Dataset,
    source: Source,
    asked: Acquisition,
    on_progress: ProgressCallback | None = None,
    on_bytes: Told | None = None,
    on_live: LiveCallback | None = None,
) -> Commit:
    """Read `source` into `dataset`, or add its captions to it; what an earlier attempt finished is kept.

    Terms are judged before anything is fetched, and a dataset keeps to the hub's commit that it began with.

    Raises:
        ConfigurationError: terms have to be accepted first; the source has no files to read.
        HarmonError: files cannot be fetched, found or read.
    """
    check_accepted(source, asked.accepted)
    if not source.layouts:
        raise ConfigurationError(
            f"{source.name} is made by a recipe's own web and not read from files; use `harmon run`."
        )
    files = _files(dataset, source, asked, on_bytes)
    if source.override:
        commit = add_captions(dataset, files, asked.accepted, on_progress)
    elif isinstance(files.layout, UrlTable):
        commit = download_listed(dataset, files, asked.settings, asked.accepted, asked.how, on_progress, on_live)
    else:
        commit = ingest(dataset, files, _ingest_settings(asked), asked.accepted, on_progress)
    unpin(dataset, source)
    return commit


def is_acquired(dataset: Dataset, source: Source, asked: Acquisition) -> bool:
    """Whether `acquire` would have nothing to do. The hub is not asked: a dataset keeps to its commit, so one that was
    read with these settings is done.

    Raises HarmonError where the folder with the files is absent.
    """
    settings = _ingest_settings(asked)
    if asked.folder is None:
        return _was_read(dataset, source, asked)
    files = local_files(source, asked.folder, only=asked.only)
    if isinstance(files.layout, UrlTable):
        return listed_commit(dataset, files, asked.settings) is not None
    return StepRun(dataset, ingest_step(files, settings)).committed is not None


def _was_read(dataset: Dataset, source: Source, asked: Acquisition) -> bool:
    """Whether a source of the hub was read by these rules and settings; a table of links, and then downloaded."""
    rules, layouts = asked_of(source, asked.only), [layout.model_dump(mode="json") for layout in source.layouts]
    fetched = asked.settings.model_dump(mode="json")
    read = _ingest_settings(asked).model_dump(mode="json")
    done = set()
    for commit in dataset.commits():
        said = commit.configuration
        like = said.get("layout") in layouts and _agrees(said, rules)
        if commit.step == "ingest" and like and _agrees(said, read):
            return True
        if commit.step == "list" and like and said["rows_per_shard"] == asked.settings.rows_per_shard:
            done.add("list")
        if commit.step == "download" and said.get("source") == source.name and _agrees(said, fetched):
            done.add("download")
    return done == {"list", "download"}


def _agrees(said: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(said.get(name) == value for name, value in wanted.items())


def _ingest_settings(asked: Acquisition) -> IngestSettings:
    return IngestSettings.model_validate(asked.settings.model_dump(include={"rows_per_shard", "max_bytes", "limits"}))


def _files(dataset: Dataset, source: Source, asked: Acquisition, on_bytes: Told | None) -> NativeFiles:
    if asked.folder is not None:
        return local_files(source, asked.folder, only=asked.only)
    listing = list_files(source, pinned(dataset, source))
    pin(dataset, source, listing.commit)
    folder = fetch_files(source, listing, _with_images(source, asked.only), on_bytes)
    return local_files(source, folder, listing.commit, asked.only)


def _with_images(source: Source, only: Sequence[str]) -> Sequence[str]:
    """`only`, where it may leave files out: images of records go with their archives, whatever rows are wanted."""
    layout = source.layouts[0]
    archives = getattr(layout, "archives", None)
    images = [glob for one in getattr(layout, "images", ()) for glob in one.files]
    return [*only, *images, *([archives.replace("{folder}", "*")] if archives else [])] if only else ()
