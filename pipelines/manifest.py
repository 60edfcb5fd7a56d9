"""Manifests: each commit states everything that is true of a dataset from there on."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import HarmonError

IMAGES = "images"
INDEX = "images.index"  # the group under which the .idx beside each tar is listed
SOURCE = "source"
REJECTS = "rejects."  # prefix of the groups under which rejects tables are listed
FORGET = "forget"  # the one step that replaces and deletes files
TELEMETRY = ".telemetry"  # suffix of volatile groups, which no key and no equality includes


def is_volatile(group: str) -> bool:
    """Whether a group holds facts of one attempt (seconds, endpoints), outside every hash."""
    return group.endswith(TELEMETRY)


class Record(BaseModel):
    """An immutable record with no room for unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Record):
    """One listed file: what it holds, where it lies (relative to the root), and how to know it again."""

    group: str
    shard: int
    path: str
    rows: int
    bytes: int
    sha256: str
    keys_sha256: str
    """Hash of the ordered keys: of the rows, or of the members of an image shard and its index."""


class InputEntry(Record):
    """What a step read: a dataset at a commit, and the hash of each group that it read there."""

    dataset: str
    commit: int
    content_hash: str
    groups: Mapping[str, str]


class Commit(Record):
    """One manifest. `files` is cumulative: the newest commit alone describes the dataset.

    `rows_in`, `rows_out`, `rejected` and `failed` count this commit's step. A step that writes new shards has
    rows_in = rows_out + rejected; a column step has rows_in = rows_out + failed, `rows_out` being the rows
    with values.
    """

    number: int
    parent: str | None
    """SHA-256 of the previous manifest's bytes; None in commit 0."""
    step: str
    version: int
    step_key: str
    configuration: Mapping[str, Any]
    inputs: tuple[InputEntry, ...]
    files: tuple[FileEntry, ...]
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    failed: Mapping[str, int]
    schemas: Mapping[str, Mapping[str, str]]
    """Column name to type, for each group kept as columns."""
    terms: Mapping[str, Any]
    """Licence and terms by source name, of every source that went into the dataset."""
    context: Mapping[str, Any]
    """Times, host, user, software: true, and outside the content hash."""

    def to_bytes(self) -> bytes:
        """The manifest file's bytes."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the commit without context, number, parent and volatile groups."""
        view = self.model_dump(mode="json", exclude={"context", "number", "parent"})
        view["files"] = [entry for entry in view["files"] if not is_volatile(entry["group"])]
        view["schemas"] = {group: schema for group, schema in view["schemas"].items() if not is_volatile(group)}
        return sha256_hex(canonical_json(view))

    @property
    def configuration_sha256(self) -> str:
        """Hash of what was computed, by which runs of one step are told apart."""
        return sha256_hex(canonical_json(self.configuration))

    @cached_property
    def by_place(self) -> Mapping[tuple[str, int], FileEntry]:
        """The files by (group, shard)."""
        return {(entry.group, entry.shard): entry for entry in self.files}

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Commit":
        """Parse a manifest; HarmonError says where it is not one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as problem:
            first = problem.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise HarmonError(f"{where} is not a manifest: {place or 'the file'}: {first['msg']}") from problem


class Receipt(Record):
    """One finished shard of a step: what it wrote and how its rows add up."""

    step: str
    step_key: str
    shard: int
    files: tuple[FileEntry, ...]
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    failed: Mapping[str, int]
    schemas: Mapping[str, Mapping[str, str]]
    context: Mapping[str, Any]
    """Seconds that the shard took: outside every comparison."""

    def to_bytes(self) -> bytes:
        """The receipt file's bytes."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    def same_result(self, other: "Receipt") -> bool:
        """Whether both state the same work, whatever time it took."""
        return self.model_dump(exclude={"context"}) == other.model_dump(exclude={"context"})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Receipt":
        """Parse a receipt; HarmonError says where it is not one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as problem:
            raise HarmonError(f"{where} is not a receipt: {problem.errors()[0]['msg']}") from problem


def manifest_path(number: int) -> str:
    """manifest/000003.json"""
    return f"manifest/{number:06d}.json"


def receipt_path(step_key: str, shard: int) -> str:
    """steps/KEY/00000.json"""
    return f"steps/{step_key}/{shard:05d}.json"


def step_path(step_key: str) -> str:
    """steps/KEY/step.json: what the step is, written before its first file."""
    return f"steps/{step_key}/step.json"


def group_path(group: str, step_key: str, shard: int) -> str:
    """Where a step of this key writes the file of (group, shard)."""
    key8 = step_key[:8]
    if group == IMAGES:
        return f"images/{key8}/{shard:05d}.tar"
    if group == INDEX:
        return f"images/{key8}/{shard:05d}.tar.idx"
    if group.startswith(REJECTS):
        return f"rejects/{group.removeprefix(REJECTS)}/{key8}/{shard:05d}.parquet"
    return f"columns/{group}/{key8}/{shard:05d}.parquet"


def written_by(commit: Commit) -> list[FileEntry]:
    """The files of a commit that its own step wrote."""
    return [e for e in commit.files if e.path == group_path(e.group, commit.step_key, e.shard)]


def rejects_group(step: str, step_key: str) -> str:
    """The group of the rows that a step turns away. Each forgetting has its own, since a shard may see several."""
    return REJECTS + (f"{step}-{step_key[:8]}" if step == FORGET else step)


def group_hash(group: str, entries: Iterable[FileEntry]) -> str:
    """Hash of exactly one group's files, in shard order, wherever they lie."""
    files = sorted((entry.shard, entry.rows, entry.sha256, entry.keys_sha256) for entry in entries)
    return sha256_hex(canonical_json([group, files]))


def step_identity(
    name: str, version: int, configuration: Mapping[str, Any], reads: Iterable[Mapping[str, str]]
) -> bytes:
    """What a step is, as the bytes of its step.json, whose SHA-256 is the step key.

    Its name, its version, what it computes, and the hash of each group that it reads, dataset by dataset.
    """
    identity = {
        "step": name,
        "version": version,
        "configuration": configuration,
        "reads": [dict(r) for r in reads],
    }
    return canonical_json(identity)
