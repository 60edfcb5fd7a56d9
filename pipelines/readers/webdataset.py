"""WebDataset tars: adjacent members of one base name are a sample.

An empty image is no image (Infinity-MM's text rows carry one), whatever the image's ending says its format is
sniffed later, and a base name that comes again after others is told, since stock readers would make half samples
of it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.layouts import WebDataset
from pipelines.readers.json_stream import MAX_RECORD
from pipelines.readers.paths import IMAGE_SUFFIXES
from pipelines.readers.row import Mark, Native, Presence, named
from pipelines.readers.tar_samples import Member, members

TEXTS = ("json", "txt")


@dataclass
class _Sample:
    """A sample while its members come by."""

    key: str
    record: dict[str, Any] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    images: int = 0
    image: bytes | None = None
    problem: tuple[str, str] | None = None


class WebDatasetReader:
    """Samples in the order of the tar; a cursor is a sample's number, since headers are cheap to pass over."""

    def __init__(self, root: Path, files: Sequence[str], layout: WebDataset, cap: int) -> None:
        self.files = tuple(files)
        self._root = root
        self._fields = layout.fields
        self._cap = cap

    def index(self, file: str) -> Iterator[Mark]:
        """Passes over the headers; samples are read until each of the entry's fields has been seen in one."""
        presence = Presence(str(self._root / file), self._fields.named)
        for number, sample in enumerate(self._samples(file, lambda _: not presence.complete, images=False)):
            if sample.problem is None and not presence.complete:
                presence.look(sample.record)
            yield Mark(number, None)
        presence.check()

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        wanted = range(cursor, cursor + count)
        for number, one in enumerate(self._samples(file, wanted.__contains__, images=True)):
            if number in wanted:
                name = named(file, one.key if one.problem is None or one.problem[0] != "split_sample" else f"@{number}")
                yield Native(name, one.record, one.images, one.image, one.problem)
            if number + 1 == wanted.stop:
                return

    def _samples(self, file: str, wanted: Callable[[int], bool], images: bool) -> Iterator[_Sample]:
        """Every sample; those whose number is `wanted` with their contents, images among them only where asked for."""
        seen: set[str] = set()
        current: _Sample | None = None
        number = -1
        for member in members(self._root / file):
            key, suffix = _split(member.name or f"@{number + 1}")
            if current is None or key != current.key or member.name is None:
                if current is not None:
                    yield current
                number += 1
                current = _Sample(key)
                if member.name is None:
                    current.problem = ("bad_member", member.problem)
                elif key in seen:
                    current.problem = ("split_sample", f"the members of {key} are not beside each other")
                seen.add(key)
            if wanted(number):
                self._take(current, suffix, member, images)
        if current is not None:
            yield current

    def _take(self, sample: _Sample, suffix: str, member: Member, images: bool) -> None:
        kind = suffix.rpartition(".")[2]
        if suffix in sample.suffixes:
            sample.problem = sample.problem or ("duplicate_member", f"{sample.key}.{suffix} comes twice")
        sample.suffixes.add(suffix)
        if suffix in TEXTS:
            if member.size > MAX_RECORD:
                sample.problem = ("bad_record", f"a {suffix} of {member.size} bytes")
                return
            try:
                text = member.read().decode("utf-8")
                value = json.loads(text) if suffix == "json" else {"txt": text}
                if not isinstance(value, dict):
                    raise ValueError(f"{type(value).__name__}, not an object")
            except (ValueError, RecursionError) as error:
                sample.problem = sample.problem or ("bad_record", f"{suffix}: {str(error)[:120]}")
                return
            sample.record |= value
        elif kind in IMAGE_SUFFIXES and member.size:
            sample.images += 1
            if member.size > self._cap:
                sample.problem = sample.problem or ("too_large", f"{member.size} bytes, more than {self._cap}")
            elif images and sample.image is None:
                sample.image = member.read()


def _split(name: str) -> tuple[str, str]:
    """Key (folders included) and ending, which begins at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()
