"""Files of a dataset on the Hugging Face hub: resolved to a commit, fetched with resume, checked against the hub's
own checksums."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.layouts import left_in, matching, patterns, warn_of_idle
from pipelines.readers.files import Checksums, scratch_folder
from pipelines.readers.paths import BadPath, clean_path
from pipelines.workspace import WORK

ENDPOINT = "HF_ENDPOINT"  # a mirror of the hub, as huggingface_hub itself reads it
ATTEMPTS = 3  # downloads of one file, each going on where the last ended

log = logging.getLogger(__name__)

Told = Callable[[int, int], None]
"""Bytes that are here, bytes of all files."""


@dataclass(frozen=True)
class HubFile:
    """One file as the hub lists it at a commit."""

    name: str
    bytes: int
    sha256: str | None
    """Of large files."""
    blob: str
    """Git's name of its contents: SHA-1 of a header and the bytes."""


@dataclass(frozen=True)
class HubListing:
    """The files of a dataset at one commit."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]


def list_files(source: Source, revision: str | None = None) -> HubListing:
    """The files that the source's first layout reads, at `revision` (None: the entry's), resolved to a commit.

    Raises:
        ConfigurationError: the source is not on the hub.
        HarmonError: the hub cannot be reached, does not let us in, or has none of the files.
    """
    if source.hub is None:
        raise ConfigurationError(f"{source.name} is not on the hub; name the folder with its files by --from.")
    with _asking(source):
        info = _api().dataset_info(source.hub, revision=revision or source.revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    for name in siblings:
        try:
            clean_path(name)
        except BadPath as error:
            raise HarmonError(f"the hub lists {error} in {source.hub}; take nothing from there") from None
    for layout in source.layouts:
        if rows := matching(left_in(siblings, layout), patterns(layout)):
            warn_of_idle(siblings, layout, source.hub)
            files = (_file(siblings[name], source) for name in rows)
            return HubListing(source.hub, str(info.sha), tuple(files))
    globs = " or ".join(", ".join(patterns(layout)) for layout in source.layouts)
    raise HarmonError(
        f"{source.hub} at {str(info.sha)[:12]} has none of {globs}, which the entry {source.name} reads; it has "
        f"{', '.join(sorted(siblings)[:5]) or 'no files'}. Set the right ones with --set layouts.0.files=[PATTERN]"
    )


def fetch_files(source: Source, listing: HubListing, only: Sequence[str] = (), told: Told | None = None) -> Path:
    """The folder that holds the files of `listing`, laid out as on the hub; those that are not there are fetched.

    A download that was cut off goes on. `only` leaves out files that match none of its patterns. Each file's
    checksum is compared with the hub's, once.

    Raises HarmonError where a file cannot be fetched, or comes with other bytes than the hub announces.
    """
    wanted = [file for file in listing.files if not only or matching([file.name], only)]
    if not wanted:
        raise ConfigurationError(
            f"--files {' '.join(only)} matches none of the {len(listing.files)} files of {source.name}."
        )
    root = scratch_folder() / "hub" / listing.repository.replace("/", "--") / listing.commit
    here, total = 0, sum(file.bytes for file in wanted)
    with Checksums() as known:
        for file in wanted:
            _fetch(source, listing, file, root, known)
            here += file.bytes
            if told:
                told(here, total)
    return root


def pinned(dataset: Dataset, source: Source) -> str | None:
    """The commit of the hub that `dataset` was first read from, or None: by its manifests, else by a note that an
    attempt left which never came to a commit."""
    for commit in dataset.commits():
        revision = commit.configuration.get("revision")
        if commit.configuration.get("source") == source.name and revision not in (None, "local"):
            return str(revision)
    note = _note(dataset, source)
    return note.read_text().strip() if note.is_file() else None


def pin(dataset: Dataset, source: Source, commit: str) -> None:
    """Note the commit until a manifest says it."""
    note = _note(dataset, source)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(commit + "\n")


def unpin(dataset: Dataset, source: Source) -> None:
    """Take the note away: a manifest says it now."""
    note = _note(dataset, source)
    note.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or other steps are at work
        note.parent.rmdir()


def _note(dataset: Dataset, source: Source) -> Path:
    return dataset.store.work(f"{WORK}/{source.name}.revision")


def _fetch(source: Source, listing: HubListing, file: HubFile, root: Path, known: Checksums) -> None:
    path = root / file.name
    for attempt in range(ATTEMPTS):
        if path.is_file() and _is_whole(path, file, known):
            return
        if path.is_file() and path.stat().st_size == file.bytes:
            log.warning("%s has other bytes than the hub announces; it is fetched again", path)
        path.unlink(missing_ok=True)
        with _asking(source, last=attempt + 1 == ATTEMPTS):
            _api().hf_hub_download(
                listing.repository, file.name, repo_type="dataset", revision=listing.commit, local_dir=root
            )
    if not (path.is_file() and _is_whole(path, file, known)):
        raise HarmonError(
            f"{file.name} of {listing.repository} came {ATTEMPTS} times with other bytes than the hub announces; the "
            f"hub or mirror ({os.environ.get(ENDPOINT) or 'huggingface.co'}) is not to be trusted with it"
        )


def _is_whole(path: Path, file: HubFile, known: Checksums) -> bool:
    if path.stat().st_size != file.bytes:
        return False
    if file.sha256 is not None:
        return known.of(path) == file.sha256
    digest = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    digest.update(path.read_bytes())  # only small files have no SHA-256
    return digest.hexdigest() == file.blob


def _file(sibling: Any, source: Source) -> HubFile:
    if sibling.size is None:
        raise HarmonError(f"the hub does not say how large {sibling.rfilename} of {source.hub} is; try again later")
    return HubFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id or "")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get(ENDPOINT) or None)


class _asking:
    """Turns the hub's errors into sentences; before the last attempt a broken connection is passed over."""

    def __init__(self, source: Source, last: bool = True) -> None:
        self._source = source
        self._last = last

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        from huggingface_hub import errors

        repository = self._source.hub
        if isinstance(error, errors.OfflineModeIsEnabled):
            said = "HF_HUB_OFFLINE is set; unset it, or name a folder with the files by --from"
        elif isinstance(error, errors.GatedRepoError):
            said = "it is gated: ask for access on its page, then give a token (hf auth login, or HF_TOKEN)"
        elif isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            said = "there is no such dataset or revision, or it is private: give a token (hf auth login, or HF_TOKEN)"
        elif isinstance(error, OSError | ValueError) or type(error).__module__.startswith("httpx"):  # hub's own client
            if not self._last:
                log.warning("%s: %s; trying again", repository, str(error).splitlines()[0][:200])
                return True
            said = f"{str(error).splitlines()[0][:200]}; run again, and what is here stays"
        else:
            return False
        raise HarmonError(f"{repository} on the hub cannot be read: {said}") from None
