"""What a selection is told: rules, how many to keep, and how the survivors are written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from filtering.buckets import Buckets
from filtering.cut import Take
from filtering.decontamination import Decontamination
from filtering.geometry import Geometry
from filtering.grammar import parse_condition
from filtering.groups import full_name
from filtering.resize import Resize, is_of_bytes
from filtering.rules import Addresses, Captions, FileTypes, HashList, Rule, Threshold
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE
from pipelines.settings import Settings


class Selection(Settings):
    """Which rows stay, and how they are written. All of it decides the bytes that come out."""

    geometry: Geometry | None = Geometry()
    """None: pictures of any shape."""
    file_types: FileTypes | None = None
    captions: Captions | None = None
    addresses: Addresses | None = None
    hash_lists: tuple[HashList, ...] = ()
    """Known-bad images."""
    thresholds: tuple[Threshold, ...] = ()
    """Scores of our own, or shipped by a source in a column group (PixelProse's watermark and toxicity)."""
    where: str | None = None
    """A condition that every row has to meet (filtering.grammar)."""
    decontaminate: Decontamination | None = None
    duplicates: str | None = None
    """Column group of near duplicates, of which the best row stays (filtering.duplicates). Equal bytes always count."""
    prefer: tuple[str, ...] = ()
    """Which of several equal rows is the best: columns, the larger value first. Empty: the first row."""
    take: Take | None = None
    """How many of the pictures that pass everything else."""

    carry: tuple[str, ...] = ()
    """Column groups that go along besides those of the thresholds: captions by version."""
    caption_shares: Mapping[str, float] = {}
    """Caption versions by share: `source` and caption groups. Each row gets one, drawn by its key; a version that it
    lacks is left out of its draw. Written to the column group `caption.chosen` and to the view."""
    buckets: Buckets | None = None
    """Resolutions and aspects of training; each row's bucket is written to the group `bucket` and to the view."""
    resize: Resize | None = None
    """None: the original bytes."""
    rows_per_shard: int = Field(default=1000, ge=1)
    shard_bytes: int | None = Field(default=None, ge=1 << 20)
    """About how large a shard is to be instead: rows a shard follow from the mean size of the pictures that stay, as
    they are written."""
    seed: int = 0
    """Of the global shuffle, of the caption's draw, and of the order among equal scores."""

    @field_validator("where")
    @classmethod
    def _can_be_read(cls, where: str | None) -> str | None:
        if where is not None:
            parse_condition(where)
        return where

    @field_validator("caption_shares")
    @classmethod
    def _are_shares(cls, shares: Mapping[str, float]) -> Mapping[str, float]:
        if shares and (min(shares.values()) < 0 or not sum(shares.values()) > 0):
            raise ValueError("shares are not negative, and one is above 0")
        return shares

    @model_validator(mode="after")
    def _carries_what_stays_true(self) -> "Selection":
        if self.resize and (stale := [group for group in self.carry if is_of_bytes(group)]):
            raise ValueError(f"{', '.join(stale)} would be false of pictures that are made smaller; carry it not")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Every column group that is carried into the new dataset; with a resize none that speaks of the old bytes."""
        captions = (name for name in self.caption_shares if name != SOURCE)
        scores = (t.group for t in self.thresholds if t.group != SOURCE)
        taken = (self.take.group,) if self.take and self.take.group != SOURCE else ()
        found = dict.fromkeys((*self.carry, *captions, *scores, *taken))
        return tuple(group for group in found if self.resize is None or not is_of_bytes(group))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules on images, in the order in which they are judged."""
        some = (self.geometry, self.file_types, self.captions, self.addresses, *self.hash_lists, *self.thresholds)
        return tuple(rule for rule in some if rule is not None)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source that is named, by a rule or a quota."""
        named = [name for rule in self.rules for name in rule.sources]
        named += [*self.take.sources, *self.take.quotas] if self.take else []
        return tuple(dict.fromkeys(named))

    @property
    def measured(self) -> tuple[tuple[str, str], ...]:
        """Group and column of every number that a threshold or the cut looks at."""
        looked = [(threshold.group, threshold.column) for threshold in self.thresholds]
        return tuple(dict.fromkeys([*looked, *([(self.take.group, self.take.column)] if self.take else [])]))

    def named(self, datasets: Sequence[Dataset]) -> "Selection":
        """With the whole names of the groups that thresholds and the cut read: `aesthetic` may stand for the one
        group that begins so.

        Raises ConfigurationError where several do.
        """
        looked = [one.model_copy(update={"group": full_name(datasets, one.group)}) for one in self.thresholds]
        take = self.take and self.take.model_copy(update={"group": full_name(datasets, self.take.group)})
        return self.model_copy(update={"thresholds": tuple(looked), "take": take})

    def configuration(self) -> dict[str, Any]:
        """What decides the result: files by their contents, not by where they lie."""
        found: dict[str, Any] = self.model_dump(mode="json")
        for one, told in zip(self.hash_lists, found["hash_lists"], strict=True):
            told["file"] = one.sha256
        if self.decontaminate is not None and self.decontaminate.lists:
            found["decontaminate"]["lists"] = self.decontaminate.sha256
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the rules read."""
        lists = self.decontaminate.lists if self.decontaminate else ()
        return (*(one.file for one in self.hash_lists), *lists)
