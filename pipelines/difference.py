"""What differs between two versions of a dataset: the answer, for programs and for a person."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.captions_diff import CaptionChange
from pipelines.tombstones import REASON


@dataclass(frozen=True)
class Example:
    """One sample that differs: its value in both versions, or why it is gone."""

    key: str
    before: str | None = None
    after: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ColumnChange:
    """A column whose values differ in `rows` of the samples that both versions have.

    For the column `data` of the group `images` the examples give the SHA-256 of the image's bytes as stored, and
    None for a version that has no image of the sample.
    """

    group: str
    column: str
    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Difference:
    """Everything that differs between the versions `before` and `after` (path and commit number).

    `removed` counts the samples that are gone by reason; `forgotten` is one of them, `unknown` stands for those
    that no rejects table of the later version names. `groups_added` and `groups_removed` are whole groups.
    """

    before: str
    after: str
    rows_before: int
    rows_after: int
    added: int = 0
    added_examples: tuple[Example, ...] = ()
    removed: Mapping[str, int] = field(default_factory=dict)
    removed_examples: tuple[Example, ...] = ()
    groups_added: tuple[str, ...] = ()
    groups_removed: tuple[str, ...] = ()
    columns: tuple[ColumnChange, ...] = ()
    captions: tuple[CaptionChange, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both hold the same samples with the same values."""
        return not (self.added or self.removed or self.groups_added or self.groups_removed or self.columns)

    @property
    def forgotten(self) -> int:
        """Samples that are gone because someone asked for it."""
        return self.removed.get(REASON, 0)

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return {"equal": self.equal, "forgotten": self.forgotten, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """The difference for a person."""
        yield f"{self.before} ({self.rows_before:,} rows) -> {self.after} ({self.rows_after:,} rows)"
        if self.equal:
            yield "  equal: the same samples with the same values"
        if self.added:
            yield f"  {self.added:,} samples added"
            yield from (f"      {one.key}" for one in self.added_examples)
        for reason, number in sorted(self.removed.items(), key=lambda item: -item[1]):
            yield f"  {number:,} samples {'forgotten' if reason == REASON else f'removed: {reason}'}"
            yield from (f"      {one.key}" for one in self.removed_examples if one.reason == reason)
        yield from (f"  group {group} added" for group in self.groups_added)
        yield from (f"  group {group} removed" for group in self.groups_removed)
        for change in self.columns:
            yield f"  {change.group}.{change.column}: {change.rows:,} samples changed"
            yield from (f"      {one.key}  {one.before}  ->  {one.after}" for one in change.examples)
        for captions in self.captions:
            yield from (f"  {line}" for line in captions.lines())
