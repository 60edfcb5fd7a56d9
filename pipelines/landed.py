"""What an engine brings for the links of a shard, in img2dataset's layout, whichever engine it was.

A shard is NNNNN.tar (members `<key>.jpg`, whatever the bytes are, and `<key>.json`), NNNNN.parquet (a row for each
link, failures included) and, last, NNNNN_stats.json; only with the last is it complete.
"""

import json
import math
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.rules import FetchError, parsed

BLOCK = tarfile.BLOCKSIZE
ANSWERS = pa.schema(
    [(name, pa.string()) for name in ("url", "key", "status", "error_message")]
    + [(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
)
SHARD_DIGITS = 5  # of a shard's number, in names and keys: img2dataset's oom_shard_count


def digits_of(links: int) -> int:
    """Digits of a position within shards of at most `links` links, as img2dataset counts them."""
    return math.ceil(math.log10(links)) if links > 1 else 0


def complete(output: Path) -> set[int]:
    """Numbers of the shards below `output` whose counts are written, as valid JSON."""
    numbers = set()
    for path in output.glob("*_stats.json"):
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
        with tarfile.open(tar, "r:") as members:
            self._members = {
                int(Path(m.name).stem) % 10**digits: (m.offset_data, m.size) for m in members if m.name.endswith(".jpg")
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
        row = self._row(position, url, "success", None)
        key = row["key"]
        _header(self._tar, f"{key}.jpg", size)
        for piece in pieces:
            self._tar.write(piece)
        self._tar.write(bytes(-size % BLOCK))
        view = json.dumps(row, indent=4).encode()
        _header(self._tar, f"{key}.json", len(view))
        self._tar.write(view + bytes(-len(view) % BLOCK))

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

    def _row(self, position: int, url: str, status: str, error: str | None) -> dict[str, Any]:
        row = {"url": url, "key": f"{self._base + position:0{self._width}d}", "status": status, "error_message": error}
        row |= dict.fromkeys(("width", "height", "original_width", "original_height"))
        self._rows.append(row)
        return row


def _header(tar: BinaryIO, name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    tar.write(member.tobuf(tarfile.USTAR_FORMAT))
