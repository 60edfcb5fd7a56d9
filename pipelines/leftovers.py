"""What attempts that never committed have left in a dataset, where it holds samples that are to be forgotten."""

import json
import logging

from pyarrow import ArrowException, compute

from pipelines.archive import read_archive
from pipelines.audit_folder import LAYOUT, STEP_FILE, check_unlisted
from pipelines.columns import parquet_file
from pipelines.dataset import Dataset
from pipelines.disk import remove_folder
from pipelines.drafts import Overtaken
from pipelines.errors import HarmonError
from pipelines.manifest import FORGET, Receipt, receipt_path, step_path
from pipelines.request import FACTS, Request, asked
from pipelines.workspace import ANSWERS, DAMAGED, WORK, is_held

log = logging.getLogger(__name__)


def drop_leftovers(dataset: Dataset, request: Request, step_key: str, head: int) -> None:
    """Delete the leftovers that hold a sample of `request`, shard by shard with their receipts; the step they
    belong to does those shards again.

    Unfinished puts, uploads that were begun a day ago or earlier, and leftovers that cannot be read, go too, and so
    does what killed forgettings left, but for that of `step_key`, the one that asks: it goes on where it was.

    `head` is the number of the commit that the forgetting was planned on. Raises Overtaken, a HarmonError, once
    another commit stands: what was a leftover may be listed now. Raises HarmonError where another forgetting is
    under way, or where an attempt at another step is, or was killed in the middle of a shard: its temporaries may
    hold the samples. For a dataset in S3 they lie on the machine of the attempt; only this machine's can be looked
    at.
    """
    _clear_work(dataset, step_key)
    found = list(check_unlisted(dataset, dataset.commits(), dataset.store.sizes()))
    for upload in dataset.store.uploads():
        if upload.abandoned:
            dataset.store.drop_upload(upload)
        else:
            log.warning(
                "%s: left the upload of %s: it may be under way since %s", dataset.name, upload.path, upload.begun
            )
    for finding in found:
        if finding.kind == "leftover_temporary":
            dataset.store.remove(finding.path)
    unlisted = [finding.path for finding in found if finding.kind == "leftover_uncommitted"]
    leftovers = [path for path in unlisted if _place(path)[0] != step_key[:8]]
    tainted = {_place(path) for path in leftovers if _holds(dataset, path, request)}
    for path in leftovers:
        if _place(path) in tainted:
            if dataset.commit_numbers()[-1] != head:  # looked up each time: the scan above may have taken hours
                raise Overtaken(f"another process committed to {dataset.root} while samples were forgotten; run again")
            log.info("%s: deleting the leftover %s, which holds forgotten samples", dataset.name, path)
            dataset.store.remove(path)


def withdraw(dataset: Dataset, step_key: str) -> None:
    """Delete what an attempt at forgetting wrote before another commit overtook it, unless that was its own, made by
    another machine."""
    names = [path for path in dataset.store.list(f"steps/{step_key}") if path != step_path(step_key)]
    for path in names:
        if dataset.commit_of(step_key) is not None:
            return
        receipt = Receipt.from_bytes(dataset.store.read(path), path)
        dataset.store.remove(receipt_path(step_key, receipt.shard))
        for entry in receipt.files:
            dataset.store.remove(entry.path)


def _clear_work(dataset: Dataset, step_key: str) -> None:
    """Delete what killed forgettings but that of `step_key` keep beside the dataset. Raises HarmonError where this
    machine keeps something of another step, of a forgetting under way, or of a repair."""
    work = dataset.store.work(WORK)
    for folder in sorted(work.iterdir()) if work.is_dir() else ():
        if not any(path.is_file() for path in (folder, *folder.rglob("*"))):
            continue
        if folder.name == FORGET:
            continue  # the claim that this forgetting holds
        if folder.name == DAMAGED:
            raise HarmonError(
                f"{folder} keeps files that a repair of {dataset.root} set aside, and the samples may be in them; "
                "delete it, then forget"
            )
        if folder.name == ANSWERS:
            raise HarmonError(
                f"{folder} keeps answers of a recaptioning of {dataset.root} that has not ended, and texts of the "
                "samples may be among them; let it finish (run it again), or stop it and delete the folder, then forget"
            )
        if (step := _step_of(dataset, folder.name)) != FORGET:
            raise HarmonError(
                f"an attempt at the step {step or 'of an unknown name'} in {dataset.root} is under way or was killed; "
                f"let it finish (run it again), or stop it and delete {folder}, then forget"
            )
        if folder.name == step_key:
            continue  # the shards are begun anew
        if is_held(folder):
            raise HarmonError(
                f"another forgetting in {dataset.root} is under way in {folder}; let it end, or stop it, then forget"
            )
        remove_folder(folder)
        if folder.exists():
            raise HarmonError(
                f"{folder}, which a killed forgetting left, cannot be deleted, and the samples may be in it; "
                "delete it, then forget"
            )


def _step_of(dataset: Dataset, step_key: str) -> str | None:
    """The name of the step that left a work folder, or None where no sound record tells it."""
    path = step_path(step_key)
    if not dataset.store.exists(path):
        return None
    try:
        return str(json.loads(dataset.store.read(path)).get("step"))
    except (ValueError, AttributeError):
        return None


def _place(path: str) -> tuple[str, str]:
    """First eight digits of the step key and the shard's number, as they stand in a leftover's path."""
    number = path.rpartition("/")[2].partition(".")[0]
    if match := STEP_FILE.fullmatch(path):
        return match[1][:8], number
    match = LAYOUT.fullmatch(path)
    assert match is not None, path  # check_unlisted calls nothing else a leftover
    return match["images"] or match["table"], number


def _holds(dataset: Dataset, path: str, request: Request) -> bool:
    """Whether a leftover holds a sample of the request, or cannot be read so that nobody knows."""
    if path.startswith("steps/") or path.endswith(".idx"):
        return False
    store = dataset.store
    try:
        if path.endswith(".tar"):
            with store.open(path) as stream:
                archive = read_archive(stream, path)
            return archive.problem is not None or any(key in request.keys for _, key in archive.samples)
        with parquet_file(store.readable(path)) as parquet:
            rows = parquet.read(columns=[name for name in FACTS if name in parquet.schema_arrow.names])
        return bool(compute.any(asked(rows, request)).as_py())
    except (HarmonError, ArrowException, OSError, ValueError):
        return True
