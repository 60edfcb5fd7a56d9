"""What an engine brings for the links of a shard, in img2dataset's layout, whichever engine it was.

A shard is NNNNN.tar (members `<key>.jpg`, whatever the bytes are, and `<key>.json`), NNNNN.parquet (a row for each
link, failures included) and, last, NNNNN_stats.json; only with the last is it complete.
"""

import json
import math
import mmap
import time
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.rules import FetchError, parsed
from pipelines.ustar import BLOCK, header

ANSWERS = pa.schema(
    [(name, pa.string()) for name in ("url", "key", "status", "error_message")]
    + [(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
)
VIEW = (
    json.dumps(
        {"url": "", "key": "KEY", "status": "success", "error_message": None} | dict.fromkeys(ANSWERS.names[4:]),
        indent=4,
    )
    .encode()
    .replace(b'"url": ""', b'"url": URL')
)  # the JSON of a picture, but for its link and key
SHARD_DIGITS = 5  # of a shard's number, in names and keys: img2dataset's oom_shard_count


def digits_of(links: int) -> int:
    """Digits of a position within shards of at most `links` links, as img2dataset counts them."""
    return math.ceil(math.log10(links)) if links > 1 else 0


def complete(output: Path, known: Container[int] = ()) -> set[int]:
    """Numbers of the shards below `output` whose counts are written, as valid JSON, without those that are `known`."""
    numbers = set()
    for path in output.glob("*_stats.json"):
        if int(path.name.partition("_")[0]) in known:
            continue
        try:
            json.loads(path.read_bytes())
        except ValueError:  # being written right now
            continue
        numbers.add(int(path.name.partition("_")[0]))
    return numbers


class Landed:
    """What was brought for one shard; pictures are read one at a time."""

    def __init__(self, shard: int, output: Path, number: int, links: int, digits: int) -> None:
        """`number` is the shard's place in this run of the engine, `digits` those of a position."""
        stem = output / f"{number:0{SHARD_DIGITS}d}"
        self.shard = shard
        self._paths = [Path(f"{stem}{end}") for end in (".tar", ".parquet", "_stats.json")]
        tar, answers, stats = self._paths
        self.seconds = float(json.loads(stats.read_bytes())["duration"])
        table = pq.read_table(answers, columns=["key", "error_message"])
        positions = [int(key) % 10**digits for key in table.column("key").to_pylist()]
        self._errors = dict(zip(positions, table.column("error_message").to_pylist(), strict=True))
        self._members = {
            int(name[:-4]) % 10**digits: place for name, place in _members(tar).items() if name.endswith(b".jpg")
        }
        brought = {position for position, error in self._errors.items() if error is None}
        self.complete = len(self._errors) == links and brought == set(self._members)

    def reasons(self) -> list[str | None]:
        """For each link in turn why it gave no bytes, or None."""
        errors = (self._errors[position] for position in range(len(self._errors)))
        return [parsed(message).reason if message is not None else None for message in errors]

    def read(self, position: int) -> bytes:
        """The bytes that came from link number `position` of the shard, whatever they are.

        Raises:
            FetchError: the link gave none.
        """
        if (message := self._errors[position]) is not None:
            raise parsed(message)
        offset, size = self._members[position]
        with self._paths[0].open("rb") as tar:
            tar.seek(offset)
            return tar.read(size)

    def drop(self) -> None:
        """Delete the landing files."""
        for path in self._paths:
            path.unlink(missing_ok=True)  # the scratch they lie in goes with the last receipt


class LandingWriter:
    """Writes one shard in that layout; answers may come in any order."""

    def __init__(self, output: Path, number: int, digits: int) -> None:
        self._stem = output / f"{number:0{SHARD_DIGITS}d}"
        self._base, self._width = 10**digits * number, digits + SHARD_DIGITS
        self._tar = Path(f"{self._stem}.tar").open("wb")  # noqa: SIM115
        self._rows: list[dict[str, Any]] = []
        self._began = time.time()

    def add(self, position: int, url: str, size: int, pieces: Iterable[bytes]) -> None:
        """A link that gave `size` bytes, in `pieces`."""
        key = self._row(position, url, "success", None)
        view = VIEW.replace(b"URL", json.dumps(url).encode(), 1).replace(b"KEY", key.encode(), 1)
        parts = [header(key, "jpg", size), *pieces, bytes(-size % BLOCK)]
        parts += [header(key, "json", len(view)), view, bytes(-len(view) % BLOCK)]
        self._tar.writelines(parts)

    def fail(self, position: int, url: str, error: FetchError) -> None:
        """A link that gave none."""
        self._row(position, url, "failed_to_download", str(error))

    def close(self) -> None:
        """The shard is complete."""
        self._tar.write(bytes(2 * BLOCK))
        self._tar.close()
        pq.write_table(pa.Table.from_pylist(self._rows, ANSWERS), Path(f"{self._stem}.parquet"))
        statuses = Counter(row["error_message"] or "success" for row in self._rows)
        successes, ended = statuses["success"], time.time()
        stats = {
            "count": len(self._rows),
            "successes": successes,
            "failed_to_download": len(self._rows) - successes,
            "failed_to_resize": 0,
            "duration": ended - self._began,
            "start_time": self._began,
            "end_time": ended,
            "status_dict": dict(statuses),
        }
        Path(f"{self._stem}_stats.json").write_text(json.dumps(stats, indent=4))

    def _row(self, position: int, url: str, status: str, error: str | None) -> str:
        key = f"{self._base + position:0{self._width}d}"
        self._rows.append({"url": url, "key": key, "status": status, "error_message": error})
        return key


def _members(tar: Path) -> dict[bytes, tuple[int, int]]:
    """Name, offset and size of the files in a complete tar that an engine of ours has just written.

    Names are short and sizes below 8 GiB, so that nothing but times stands in the extended headers that img2dataset
    writes: they are passed over. tarfile's own reading takes a tenth of the time of fetching.
    """
    found = {}
    with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset + BLOCK <= len(data) and data[offset]:
            size = int(data[offset + 124 : offset + 135], 8)
            if data[offset + 156] in b"0\0":
                found[data[offset : offset + 100].rstrip(b"\0")] = (offset + BLOCK, size)
            offset += BLOCK + size + -size % BLOCK
    return found
