"""Forgetting: the one step that deletes. Samples leave every listing, and the shards that held them are written
anew without them.

The order makes it safe to kill at any point: new files first, then the commit that lists them in place of the
old ones, then the deletion of the old ones, which any later forgetting finishes. Run again after a kill, it
goes on where it was and ends in the same content hash. One forgetting at a time works on a dataset on this machine.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.columns import REJECT_SCHEMA
from pipelines.dataset import Dataset
from pipelines.drafts import Overtaken
from pipelines.errors import HarmonError
from pipelines.identity import Reads, Step
from pipelines.leftovers import drop_leftovers, withdraw
from pipelines.lineage import derived, upstream
from pipelines.manifest import FORGET, IMAGES, INDEX, REJECTS, SOURCE, Commit, is_volatile, step_path
from pipelines.request import FACTS, Request, among, asked
from pipelines.steps import ProgressCallback, ShardOutput, StepRun
from pipelines.tombstones import REASON, configuration, forgettings, tombstoned_files, tombstones, tombstones_of
from pipelines.workspace import WORK, claim

VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What forgetting would do to a dataset at one commit."""

    dataset: Dataset
    """As of that commit."""
    keys: frozenset[str]
    """Samples found in it."""
    shards: Mapping[int, int]
    """Shard to number of its samples that go; 0 where only a rejects table names one."""
    request: Request
    """What was asked for, with the keys that were found."""
    asked: Request
    """What was asked for, before keys were found."""

    @property
    def head(self) -> Commit:
        """That commit."""
        head = self.dataset.head
        assert head is not None  # `plan_forgetting` found it
        return head

    @property
    def files(self) -> list[str]:
        """Every file of those shards: all of them are replaced."""
        return sorted(entry.path for entry in self.head.files if entry.shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of the files that are written anew."""
        return sum(entry.bytes for entry in self.head.files if entry.shard in self.shards)

    @property
    def step(self) -> Step:
        """The step that carries it out."""
        groups = sorted({entry.group for entry in self.head.files if not is_volatile(entry.group)})
        what = configuration(self.asked.stones, self.request.stones, self.files)
        return Step(FORGET, VERSION, what, (Reads(self.dataset, tuple(groups)),))

    def to_json(self) -> dict[str, Any]:
        """For --dry-run --json."""
        return {
            "dataset": str(self.dataset.root),
            "samples": len(self.keys),
            "shards": sorted(self.shards),
            "bytes_rewritten": self.bytes,
        }


def plan_forgetting(dataset: Dataset, request: Request) -> Plan:
    """What `request` means for the newest commit. Only the columns that decide are read, a shard at a time.

    Raises HarmonError for a dataset without a commit.
    """
    pinned = dataset.at(_newest(dataset).number)
    found: dict[str, int] = {}
    wanted = request
    while True:
        fresh = {key: shard for key, shard in _matches(pinned, wanted) if key not in found}
        found |= fresh
        if not fresh:
            break
        wanted = replace(wanted, keys=wanted.keys | fresh.keys())  # what was made from these goes with them
    shards = dict.fromkeys(_rejecting(pinned, wanted), 0)
    for shard in found.values():
        shards[shard] = shards.get(shard, 0) + 1
    return Plan(pinned, frozenset(found), shards, wanted, request)


def forget(dataset: Dataset, request: Request, on_progress: ProgressCallback | None = None) -> list[Commit]:
    """Take the samples of `request` out of `dataset` and bar them from coming back; the commits that do it.

    None is needed where all of it was forgotten before and nothing has come back. Files that an earlier, killed
    forgetting should have deleted go in any case, and so do leftovers of other attempts that hold the samples.

    Raises:
        HarmonError: another forgetting, or another step, is under way in the dataset, or a file of it cannot be read.
    """
    _newest(dataset)  # before a folder is made for the claim
    folder = dataset.store.work(f"{WORK}/{FORGET}")
    refusal = f"another forgetting in {dataset.root} is under way; let it end, or stop it, then forget"
    made: list[Commit] = []
    with claim(folder, refusal):
        delete_tombstoned(dataset)
        while True:
            plan = plan_forgetting(dataset, request)
            try:
                drop_leftovers(dataset, plan.request, plan.step.key, plan.head.number)
                if not plan.shards and plan.request.stones <= tombstones(dataset):
                    return made
                made.append(_carry_out(plan, dataset, on_progress))
            except Overtaken:
                log.info("%s changed while samples were forgotten; starting over", dataset.name)
            delete_tombstoned(dataset)


def _carry_out(plan: Plan, dataset: Dataset, on_progress: ProgressCallback | None) -> Commit:
    """Write the shards of a plan anew and commit them. Raises Overtaken where others came first."""
    run = StepRun(dataset, plan.step, on_progress)
    dataset.store.put(step_path(run.step.key), run.step.identity)
    for shard in run.pending(sorted(plan.shards)):
        _rewrite(run, plan, shard)
    try:
        return run.commit()
    except Overtaken:
        withdraw(dataset, run.step.key)
        raise


def forget_everywhere(dataset: Dataset, request: Request) -> dict[str, list[Commit]]:
    """`forget`, then the same in every dataset of the folder that was made from this one; commits by name.

    What is found on the way is forgotten further down too, whatever it was named by.
    """
    made = {dataset.name: forget(dataset, request)}
    known = _with_found(request, dataset)
    for other in derived(dataset):
        made[other.name] = forget(other, known)
        known = _with_found(known, other)
    return made


@dataclass(frozen=True)
class Relative:
    """A dataset of the same folder that holds samples of the request."""

    name: str
    relation: Literal["derived", "upstream"]
    samples: int
    shards: int


def relatives(dataset: Dataset, request: Request) -> list[Relative]:
    """The datasets made from `dataset`, and those it was made from, that hold samples of the request."""
    known = replace(request, keys=request.keys | plan_forgetting(dataset, request).keys | _named(dataset, request))
    found: list[Relative] = []
    for relation, others in (("derived", derived(dataset)), ("upstream", upstream(dataset))):
        for other in others:
            plan = plan_forgetting(other, known)
            if plan.shards:
                found.append(Relative(other.name, relation, len(plan.keys), len(plan.shards)))  # type: ignore[arg-type]
    return found


def delete_tombstoned(dataset: Dataset) -> None:
    """Delete the files that forgetting took away, as far as they still stand. Only files that an earlier commit
    listed and the newest does not are ever deleted, whatever a manifest says.

    Raises HarmonError where what took a file's place does not stand with its size: then the file is all that is left
    of the rows that were to stay, and is kept.
    """
    past: dict[str, tuple[str, int]] = {}
    kept: list[tuple[str, str]] = []
    commits = dataset.commits()  # of this very moment: `head` may be a second old in S3
    places = commits[-1].by_place if commits else {}
    present = {entry.path for entry in places.values()}
    store = dataset.store
    for commit in commits:
        if commit.step == FORGET:
            for path in tombstoned_files(commit):
                if path not in past or path in present or not store.exists(path):
                    continue
                successor = places.get(past[path])
                if successor is not None and store.size(successor.path) == successor.bytes:
                    store.remove(path)
                else:
                    kept.append((path, successor.path if successor else "no file"))
        past |= {entry.path: (entry.group, entry.shard) for entry in commit.files}
    if kept:
        path, successor_path = kept[0]
        raise HarmonError(
            f"{len(kept)} files of {dataset.root} with forgotten samples still stand (first {path}), because what took "
            f"their place ({successor_path}) is absent or damaged; mend that (`harmon audit`), then forget again"
        )


def _newest(dataset: Dataset) -> Commit:
    if (head := dataset.newest()) is None:
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    return head


def _named(dataset: Dataset, request: Request) -> frozenset[str]:
    """Keys that earlier forgettings found for exactly this request: their samples are gone from here already. One
    that was asked for more tells nothing, because its keys may be those of the rest."""
    asked = request.stones.digest
    earlier = [commit for commit in forgettings(dataset) if commit.configuration.get("asked") == asked]
    return frozenset().union(*(tombstones_of(commit).keys for commit in earlier))


def _with_found(request: Request, dataset: Dataset) -> Request:
    return replace(request, keys=request.keys | _named(dataset, request))


def _matches(dataset: Dataset, request: Request) -> Iterator[tuple[str, int]]:
    """Key and shard of the rows that the request means."""
    for shard in dataset.shard_numbers:
        rows = dataset.table(SOURCE, shard, FACTS)
        for key in rows.filter(asked(rows, request)).column("key").to_pylist():
            yield key, shard


def _rejecting(dataset: Dataset, request: Request) -> list[int]:
    """Shards whose rejects tables name a sample of the request."""
    head = dataset.head
    entries = [entry for entry in (head.files if head else ()) if _names_rows(entry.group)]
    return [
        entry.shard
        for entry in entries
        if pc.any(asked(dataset.table(entry.group, entry.shard, ["key", "url"]), request)).as_py()
    ]


def _names_rows(group: str) -> bool:
    """Whether a group is a rejects table that a person can find rows in; those of forgetting hold keys alone."""
    return group.startswith(REJECTS) and not group.startswith(f"{REJECTS}{FORGET}-")


def _rewrite(run: StepRun, plan: Plan, shard: int) -> None:
    """Write every file of one shard anew, without the samples that go."""
    dataset, head = plan.dataset, plan.head
    out = run.shard(shard)
    source = dataset.table(SOURCE, shard, ["key", "source"])
    goes = among(source.column("key"), plan.keys)
    for entry in sorted((e for e in head.files if e.shard == shard), key=lambda e: e.group):
        if entry.group == IMAGES:
            _copy_images(plan, out, shard)
        elif entry.group.startswith(REJECTS):
            table = dataset.table(entry.group, shard)
            if _names_rows(entry.group):
                table = table.filter(pc.invert(asked(table, plan.request)))
            out.rejects(table, entry.group)
        elif entry.group != INDEX:
            out.columns(entry.group, dataset.table(entry.group, shard).filter(pc.invert(goes)))
    gone = source.filter(goes)
    rows = [dict.fromkeys(REJECT_SCHEMA.names) | row | {"reason": REASON} for row in gone.to_pylist()]
    out.rejects(pa.Table.from_pylist(rows, REJECT_SCHEMA))
    out.finish(rows_in=source.num_rows)


def _copy_images(plan: Plan, out: ShardOutput, shard: int) -> None:
    """Copy the images that stay, bytes and views untouched."""
    writer = out.images()
    images = plan.dataset.images(shard)
    try:
        for row in range(len(images)):
            image = images.read(row)
            if image.key not in plan.keys:
                writer.add(image.key, image.data, image.extension, image.view)
    finally:
        images.close()
