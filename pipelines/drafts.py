"""The next commit of a dataset, made from what stands and the receipts of one step."""

import getpass
import importlib.metadata
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.identity import Step
from pipelines.manifest import (
    FORGET,
    IMAGES,
    INDEX,
    REJECTS,
    SOURCE,
    Commit,
    FileEntry,
    Receipt,
    manifest_path,
    receipt_path,
    rejects_group,
)
from pipelines.tombstones import Tombstones, barred_keys, tombstones_beside


class Overtaken(HarmonError):
    """Another process committed to the dataset what this step did not see when it began."""


def draft_commit(
    dataset: Dataset,
    step: Step,
    head: Commit | None,
    receipts: Sequence[Receipt],
    asked: Iterable[int],
    terms: Mapping[str, Any],
    began: datetime,
    notes: Mapping[str, Any] | None = None,
) -> Commit:
    """The commit that puts `receipts` on top of `head`.

    Raises HarmonError where a shard of `asked` (or, for a column step, of the dataset) has no receipt, where
    a file is not what its receipt says, where the head has one of the groups already, where shards differ
    in their schema, or where a row of a new shard is forgotten by now; Overtaken, a HarmonError, where the shards
    are no longer those that the step read. Only forgetting takes the place of files that the head has.
    """
    _check_complete(dataset, step, head, receipts, asked)
    new = [entry for receipt in receipts for entry in receipt.files]
    _check_files(dataset, step, head, new)
    _check_overtaken(dataset, step, head, new)
    _check_forgotten(dataset, step, new)
    places = {(entry.group, entry.shard) for entry in new}
    kept = [entry for entry in (head.files if head else ()) if (entry.group, entry.shard) not in places]
    files = (*kept, *new)
    return Commit(
        number=head.number + 1 if head else 0,
        parent=sha256_hex(dataset.store.read(manifest_path(head.number))) if head else None,
        step=step.name,
        version=step.version,
        step_key=step.key,
        configuration=dict(step.configuration),
        inputs=step.inputs,
        files=tuple(sorted(files, key=lambda entry: (entry.group, entry.shard))),
        rows_in=sum(receipt.rows_in for receipt in receipts),
        rows_out=sum(receipt.rows_out for receipt in receipts),
        rejected=_summed(receipt.rejected for receipt in receipts),
        failed=_summed(receipt.failed for receipt in receipts),
        schemas=_merged_schemas(dataset, head, receipts),
        terms=_merged_terms(step, head, terms),
        context=_context(began, receipts) | dict(notes or {}),
    )


def _check_complete(
    dataset: Dataset, step: Step, head: Commit | None, receipts: Sequence[Receipt], asked: Iterable[int]
) -> None:
    if not receipts and step.name != FORGET:  # forgetting what is not there yet still bars it
        raise HarmonError(f"step {step.name} of {dataset.root} has no finished shard to commit; run it first")
    wanted = set(asked)
    if head and receipts and not any(entry.group == SOURCE for receipt in receipts for entry in receipt.files):
        wanted |= {entry.shard for entry in head.files if entry.group == SOURCE}  # columns cover every shard
    if missing := sorted(wanted - {receipt.shard for receipt in receipts}):
        raise HarmonError(
            f"step {step.name} of {dataset.root} cannot be committed: {len(missing)} of {len(wanted)} shards "
            f"have no receipt (first {missing[0]}); run it again to finish them"
        )


def _check_files(dataset: Dataset, step: Step, head: Commit | None, new: Sequence[FileEntry]) -> None:
    sizes: dict[str, int | None] = {}
    for folder in {entry.path.rpartition("/")[0] for entry in new}:
        sizes |= dataset.store.sizes(folder)
    for entry in new:
        if step.name != FORGET and head and (there := head.by_place.get((entry.group, entry.shard))):
            raise HarmonError(
                f"step {step.name} cannot be committed to {dataset.root}: commit {head.number} has shard "
                f"{entry.shard} of group {entry.group} already ({there.path}), and nothing is ever rewritten"
            )
        if sizes.get(entry.path) != entry.bytes:
            receipt = receipt_path(step.key, entry.shard)
            raise HarmonError(
                f"{dataset.store.where(entry.path)} is not the file of {entry.bytes} bytes that {receipt} lists; "
                "delete that receipt and what is left of the file, then run the step again"
            )


def _check_overtaken(dataset: Dataset, step: Step, head: Commit | None, new: Sequence[FileEntry]) -> None:
    """Refuse columns of rows that the head has no longer, and a forgetting that would leave a group behind."""
    if head is None:
        return
    places = {(entry.group, entry.shard): entry for entry in new}
    for entry in new:
        source = places.get((SOURCE, entry.shard)) or head.by_place.get((SOURCE, entry.shard))
        if entry.group in (IMAGES, INDEX) or entry.group.startswith(REJECTS) or source is None:
            continue
        if entry.keys_sha256 != source.keys_sha256:
            raise Overtaken(
                f"step {step.name} cannot be committed to {dataset.root}: samples of shard {entry.shard} were "
                "forgotten while it ran; run it again, and it works on those that are left"
            )
    if step.name == FORGET:
        own = rejects_group(step.name, step.key)
        shards = {entry.shard for entry in new}
        had = {place for place in head.by_place if place[1] in shards}
        if had != {place for place in places if place[0] != own}:
            raise Overtaken(f"another process committed to {dataset.root} while samples were forgotten; run it again")


def _check_forgotten(dataset: Dataset, step: Step, new: Sequence[FileEntry]) -> None:
    """Refuse rows that were forgotten, here or in a dataset beside this one, after their shard was finished."""
    if step.name == FORGET:
        return  # what it keeps was there before
    sources = [entry for entry in new if entry.group == SOURCE]
    stones = tombstones_beside(dataset) if sources else Tombstones()
    if stones == Tombstones():
        return
    for entry in sources:
        if (key := next(barred_keys(dataset, entry.path, stones), None)) is not None:
            raise HarmonError(
                f"step {step.name} cannot be committed to {dataset.root}: shard {entry.shard} holds samples that are "
                f"forgotten (first {key}); delete {dataset.store.where(receipt_path(step.key, entry.shard))} and the "
                "files it lists, forget them in the datasets that the step reads, then run it again"
            )


def _merged_schemas(dataset: Dataset, head: Commit | None, receipts: Sequence[Receipt]) -> dict[str, Mapping[str, str]]:
    schemas = dict(head.schemas) if head else {}
    for receipt in receipts:
        for group, schema in receipt.schemas.items():
            if dict(schemas.setdefault(group, schema)) != dict(schema):
                raise HarmonError(
                    f"shard {receipt.shard} of group {group} in {dataset.root} has the columns "
                    f"{dict(schema)}, other shards {dict(schemas[group])}; write every shard with one schema"
                )
    return schemas


def _merged_terms(step: Step, head: Commit | None, terms: Mapping[str, Any]) -> dict[str, Any]:
    """What was stated before, what the datasets read state, and what is stated now; of each source, the later wins
    word by word, so that an acceptance stays."""
    merged: dict[str, Any] = dict(head.terms) if head else {}
    stated = [reads.dataset.commit(entry.commit).terms for reads, entry in zip(step.reads, step.inputs, strict=True)]
    for one in (*stated, terms):
        merged |= {source: {**merged.get(source, {}), **record} for source, record in one.items()}
    return merged


def _context(began: datetime, receipts: Iterable[Receipt]) -> dict[str, Any]:
    return {
        "started_at": began.isoformat(timespec="milliseconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(sum(receipt.context.get("seconds", 0.0) for receipt in receipts), 3),
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "software": {"python": platform.python_version(), "pyarrow": importlib.metadata.version("pyarrow")},
    }


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
