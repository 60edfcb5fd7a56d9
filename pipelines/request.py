"""Which samples someone asks to forget, and which rows that means."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConfigurationError
from pipelines.shards import KEY
from pipelines.tombstones import Tombstones, url_sha256

Kind = Literal["keys", "urls", "sha256"]
SHA256 = re.compile(r"[0-9a-f]{64}")
FACTS = ("key", "url", "sha256", "parent_key")
"""The columns of source that decide."""


@dataclass(frozen=True)
class Request:
    """The samples to forget: those with one of these keys, links (exactly so spelled) or SHA-256 of the bytes
    as fetched, and all that were made from them (`parent_key`)."""

    keys: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()

    @property
    def stones(self) -> Tombstones:
        """What the request bars for good."""
        return Tombstones(self.keys, frozenset(url_sha256(url) for url in self.urls), self.sha256)


def read_request(kind: Kind, file: Path) -> Request:
    """A request from a text file of one key, link or SHA-256 a line; blank lines are left out.

    Raises ConfigurationError where the file cannot be read, is empty, or has a line that is none of the kind.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"{file} cannot be read ({problem}); name a text file of one item a line") from None
    shape = {"keys": KEY, "sha256": SHA256}.get(kind)
    for number, line in enumerate(lines, start=1):
        if line and shape and not shape.fullmatch(line):
            digits = 32 if kind == "keys" else 64
            raise ConfigurationError(
                f"line {number} of {file} is {line[:80]!r}; --{kind} takes {digits} lower-case hex digits a line"
            )
    items = frozenset(filter(None, lines))
    if not items:
        raise ConfigurationError(f"{file} is empty; it has to name at least one sample")
    return Request(**{kind: items})


def read_requests(**files: Path | None) -> Request:
    """One request from the files that are given, by kind. Raises ConfigurationError as `read_request` does, and
    where none is given."""
    given = [read_request(kind, file) for kind, file in files.items() if file is not None]  # type: ignore[arg-type]
    if not given:
        raise ConfigurationError("nothing is named to forget; give --keys, --urls or --sha256 with a file")
    parts = zip(*((one.keys, one.urls, one.sha256) for one in given), strict=True)
    return Request(*(frozenset().union(*part) for part in parts))


def asked(rows: pa.Table, request: Request) -> pa.Array:
    """Mask of the rows that a request means, judged by those of the FACTS that the table has."""
    mask = among(rows.column("key"), request.keys)
    for name, values in (("url", request.urls), ("sha256", request.sha256), ("parent_key", request.keys)):
        if name in rows.column_names and values:
            mask = pc.or_(mask, among(rows.column(name), values))
    return mask


def among(column: pa.ChunkedArray, values: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))
