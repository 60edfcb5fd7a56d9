"""Lists of what a benchmark is made of, which keep it out of training data (filtering.decontamination)."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from filtering.decode import Undecodable
from filtering.decontamination import LIST_SCHEMA
from filtering.phash import digits, phash
from harmon.evaluation.benchmark import GENERATION, read_prompts, read_questions
from harmon.evaluation.question import MARK, Picture, Prompt, Question
from pipelines.errors import ConfigurationError, HarmonError

ROWS = 1024  # written at a time


@dataclass(frozen=True)
class Listed:
    """What a list holds."""

    items: int
    pictures: int
    """Different ones."""


def write_hash_list(
    name: str, folder: Path, target: Path, on_progress: Callable[[int, int], None] | None = None
) -> Listed:
    """Write the Parquet file `target`: benchmark, item, sha256, phash and prompt of every item of a benchmark, a row
    for each picture. The file appears whole. `on_progress` is told how many of how many items are done.

    Raises:
        ConfigurationError: `target` exists, there is no such benchmark, or the folder lacks its files.
        HarmonError: the files are damaged, are not those that were published, or hold a picture that cannot be decoded.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists already; name a new file, or delete that one.")
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target.parent} is no folder; make it, or name a file in another one.")
    items: list[Question] | list[Prompt]
    items = read_prompts(name, folder, references=True) if name in GENERATION else read_questions(name, folder)
    hashes: dict[str, str] = {}
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with pq.ParquetWriter(part, LIST_SCHEMA, compression="zstd") as writer:
            for first in range(0, len(items), ROWS):
                some = items[first : first + ROWS]
                rows = [row for item in some for row in _rows(name, item, hashes)]
                writer.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA))
                if on_progress:
                    on_progress(first + len(some), len(items))
        os.link(part, target)  # fails where somebody else has written it meanwhile
    finally:
        part.unlink(missing_ok=True)
    return Listed(len(items), len(hashes))


def _rows(name: str, item: Question | Prompt, hashes: dict[str, str]) -> Iterator[dict[str, str | None]]:
    for picture in item.pictures or (None,):
        text = " ".join(MARK.sub(" ", item.text).split())  # a copy has no marks of pictures, or others
        row: dict[str, str | None] = {"benchmark": name, "item": item.id, "prompt": text or None}
        if picture is not None:
            data = picture.read()
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in hashes:  # most benchmarks ask several questions about a picture
                hashes[sha256] = _hashed(data, picture)
            row |= {"sha256": sha256, "phash": hashes[sha256]}
        yield row


def _hashed(data: bytes, picture: Picture) -> str:
    try:
        return digits(phash(data))
    except Undecodable as problem:
        raise HarmonError(
            f"{picture.where}: its picture cannot be decoded ({problem}); fetch that file anew."
        ) from None
