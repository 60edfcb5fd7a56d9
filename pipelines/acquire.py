"""From a catalogue entry to a dataset: its files found or fetched, then read by what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.errors import ConfigurationError
from pipelines.fetch import FetchSettings
from pipelines.hub import Told, fetch_files, list_files, pin, pinned, unpin
from pipelines.ingest import IngestSettings, ingest
from pipelines.layouts import UrlTable
from pipelines.listing import download_listed
from pipelines.manifest import Commit
from pipelines.overrides import add_captions
from pipelines.readers.files import NativeFiles, local_files
from pipelines.steps import ProgressCallback
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
        commit = download_listed(dataset, files, asked.settings, asked.accepted, asked.how, on_progress)
    else:
        settings = IngestSettings.model_validate(
            asked.settings.model_dump(include={"rows_per_shard", "max_bytes", "limits"})
        )
        commit = ingest(dataset, files, settings, asked.accepted, on_progress)
    unpin(dataset, source)
    return commit


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
