"""Rules on what columns say: file type, caption, address, shipped scores, known-bad hashes.

Each rule yields checks over a whole shard; the first check that drops a row is its reason. Nothing is measured here:
what a rule compares stands in a column, so other thresholds cost a rerun of the selection alone. A rule says which
column groups it reads, and may judge the rows of some sources alone.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from filtering.rows import Mask, ShardRows
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE
from pipelines.settings import Settings
from pipelines.storage import file_sha256

DIGESTS = {32: "md5", 64: "sha256"}  # hex digits of a line to the kind of hash; 64 with `pdq:` before them is PDQ
HASH = "hash"  # column group with md5 (filtering.phash)
PDQ = "pdq"  # column group and column of PDQ hashes, 64 hexadecimal digits
PDQ_DISTANCE = 31  # differing bits of 256 that Meta's PDQ calls a match (ThreatExchange, pdq/README)


@dataclass(frozen=True)
class Check:
    """One reason to leave, judged for every row of a shard."""

    reason: str
    drops: Mask
    detail: Callable[[int], str]
    """What was measured of a row that it drops."""


def told(start: str, values: Sequence[object] | None = None) -> Callable[[int], str]:
    """A detail: the same for every row, or followed by the row's own value."""
    return lambda row: start if values is None else f"{start}{values[row]}"[:200]


class Rule(Settings):
    """Judges each row by itself."""

    sources: tuple[str, ...] = ()
    """Sources whose rows it judges; the rows of others pass, and need none of its column groups. Empty: all."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Column groups that it reads besides `source`."""
        return ()

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """Every reason to leave, in the order in which they count, for all rows of a shard."""
        raise NotImplementedError

    def verdicts(self, rows: ShardRows) -> Iterator[Check]:
        """`checks`, on the rows of its sources."""
        if not self.sources:
            yield from self.checks(rows)
        elif (mine := rows.of(self.sources)).any():
            for check in self.checks(rows):
                yield Check(check.reason, check.drops & mine, check.detail)


class Threshold(Rule):
    """Least or largest value of a number that an image needs."""

    group: str
    """Column group with the number, such as `clarity`, or the beginning of its name: `aesthetic`."""
    column: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Threshold":
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.group == SOURCE else (self.group,)

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """A row without the number is `unscored`: it never passes silently. A bound is rounded as the column's numbers
        are, so that a score of 0.8 is at most 0.8."""
        name, pictures = self.group.partition(".")[0], rows.pictures
        values = rows.numbers(self.group, self.column)
        rounded = rows.rounding(self.group, self.column)

        def why_absent(row: int) -> str:
            known = rows.head.schemas.get(self.group, {})
            told = rows.column(self.group, "reason")[row].as_py() if "reason" in known else None
            return f"{name} {self.column}: {told or 'no value'}"

        yield Check("unscored", pictures & np.isnan(values), why_absent)
        if (least := self.at_least) is not None:
            below = pictures & (values < rounded(least))
            yield Check(f"low_{name}", below, lambda row: f"{self.column} {values[row]:.3f} < {least:g}")
        if (most := self.at_most) is not None:
            above = pictures & (values > rounded(most))
            yield Check(f"high_{name}", above, lambda row: f"{self.column} {values[row]:.3f} > {most:g}")


class FileTypes(Rule):
    """Which encodings stay."""

    allow: tuple[str, ...] = ("jpg", "png", "webp")
    """Extensions as the download sniffed them."""

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        kinds = rows.column(SOURCE, "ext")
        wrong = ~np.asarray(pc.is_in(kinds, pa.array(self.allow, pa.string())), dtype=bool)
        yield Check("file_type", rows.pictures & wrong, lambda row: f"type {kinds[row].as_py()}")


class Captions(Rule):
    """Limits of the caption's length and language."""

    group: str = SOURCE
    """Column group with the caption: `source`, or a caption version."""
    min_characters: int = Field(default=1, ge=0)
    max_characters: int | None = None
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that stay, by the column group `language.<group>`; empty: any."""
    min_probability: float = 0.0
    """Of the language, below which a caption is taken for another one."""

    @property
    def reads(self) -> tuple[str, ...]:
        own = () if self.group == SOURCE else (self.group,)
        return (*own, f"language.{self.group}") if self.languages else own

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        column = "caption" if self.group == SOURCE else "text"
        lengths, pictures = rows.lengths(self.group, column), rows.pictures
        short, most = pictures & (lengths < self.min_characters), self.max_characters
        yield Check("short_caption", short, lambda row: f"{lengths[row]:.0f} characters < {self.min_characters}")
        if most is not None:
            long = pictures & (lengths > most)
            yield Check("long_caption", long, lambda row: f"{lengths[row]:.0f} characters > {most}")
        if self.languages:
            yield self._language(rows)

    def _language(self, rows: ShardRows) -> Check:
        group = f"language.{self.group}"
        found, sure = rows.column(group, "language"), rows.numbers(group, "probability")
        known = np.asarray(pc.is_in(found, pa.array(self.languages, pa.string())), dtype=bool)
        wrong = rows.pictures & ~(known & (sure >= self.min_probability))
        return Check("language", wrong, lambda row: f"language {found[row].as_py()} ({sure[row]:.2f})")


class Addresses(Rule):
    """Which hosts stay, and what an address may not contain."""

    deny: tuple[str, ...] = ()
    """Domains whose images leave, subdomains included."""
    allow: tuple[str, ...] = ()
    """If given, only these domains stay, subdomains included."""
    deny_patterns: tuple[str, ...] = ()
    """Regular expressions (RE2, which needs linear time) searched in the whole address."""

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        urls, pictures = rows.column(SOURCE, "url"), rows.pictures
        if self.deny or self.allow:
            hosts = [_host(url) for url in urls.to_pylist()]
            denied = np.array([_within(host, self.deny) for host in hosts], dtype=bool)
            strange = np.array([not _within(host, self.allow) for host in hosts], dtype=bool)
            yield Check("domain", pictures & (denied | (strange if self.allow else denied)), lambda row: hosts[row])
        for pattern in self.deny_patterns:
            try:
                found = pc.fill_null(pc.match_substring_regex(urls, pattern), False)
            except pa.ArrowInvalid as problem:
                raise ConfigurationError(f"The address pattern {pattern!r} cannot be used: {problem}.") from None
            yield Check("address", pictures & np.asarray(found, dtype=bool), lambda row: str(urls[row].as_py()))


class HashList(Rule):
    """A file of known-bad images: one hexadecimal md5 or sha256 a line, or `pdq:` and 64 digits; # begins a remark."""

    file: Path
    reason: str = Field(default="listed", pattern=r"^[a-z][a-z0-9_]*$")
    """What the rejects call it."""

    @cached_property
    def digests(self) -> dict[str, set[str]]:
        """Digests by kind. Raises ConfigurationError for a line that is none."""
        found: dict[str, set[str]] = {"md5": set(), "sha256": set(), "pdq": set()}
        for number, line in enumerate(_lines(self.file), start=1):
            text = line.partition("#")[0].strip().lower()
            digits = text.removeprefix("pdq:").strip()
            kind = "pdq" if text.startswith("pdq:") and len(digits) == 64 else DIGESTS.get(len(text), "")
            if text and not (kind and re.fullmatch(r"[0-9a-f]+", digits)):
                raise ConfigurationError(f"{self.file}, line {number}: {text[:80]!r} is no md5, sha256 or pdq: hash.")
            if text:
                found[kind].add(digits)
        return found

    @cached_property
    def _listed(self) -> dict[str, pa.Array]:
        return {kind: pa.array(sorted(digests), pa.string()) for kind, digests in self.digests.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(group for group, kind in ((HASH, "md5"), (PDQ, "pdq")) if self.digests[kind])

    @property
    def sha256(self) -> str:
        """Of the file, which stands for it in step keys."""
        if not self.file.is_file():
            raise ConfigurationError(f"There is no hash list {self.file}.")
        return file_sha256(self.file)

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """sha256 is in `source`, md5 in the group `hash`; PDQ is read from a group `pdq`, which others write.

        A row without the md5 that a list asks for is `unscored`: nobody can say that it is not listed.
        """
        for kind, group in (("sha256", SOURCE), ("md5", HASH)):
            if self.digests[kind]:
                found = rows.column(group, kind)
                absent = rows.pictures & np.asarray(pc.is_null(found), dtype=bool)
                yield Check("unscored", absent, told(f"no {kind} to compare with {self.file.name}"))
                known = pc.is_in(found, self._listed[kind])
                drops = rows.pictures & np.asarray(known, dtype=bool)
                yield Check(self.reason, drops, told(f"{kind} stands in {self.file.name}"))
        if self.digests["pdq"]:
            distance = _pdq_distance(rows.values(PDQ, PDQ), self._listed["pdq"].to_pylist())
            drops = rows.pictures & (distance <= PDQ_DISTANCE)
            yield Check(self.reason, drops, lambda row: f"pdq within {distance[row]} bits of {self.file.name}")


def _pdq_distance(found: list[str | None], bad: list[str]) -> np.ndarray:
    """Differing bits [rows] to the nearest of `bad`; 257 for a row without a hash."""
    nearest = np.full(len(found), 257)
    present = [row for row, value in enumerate(found) if value]
    if present:
        ours = np.frombuffer(bytes.fromhex("".join(found[row] or "" for row in present)), np.uint64).reshape(-1, 4)
        for digest in bad:
            other = np.frombuffer(bytes.fromhex(digest), np.uint64)
            bits = np.bitwise_count(ours ^ other).sum(axis=1)
            nearest[present] = np.minimum(nearest[present], bits)
    return nearest


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"The hash list {file} cannot be read: {problem}.") from None


def _host(url: str | None) -> str:
    try:
        return (urlsplit(url or "").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _within(host: str, domains: tuple[str, ...]) -> bool:
    """Whether a host is one of the domains or below one."""
    parts = host.split(".")
    return any(".".join(parts[start:]) in domains for start in range(len(parts)))
