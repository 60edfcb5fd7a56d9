"""Drawn pictures as the folders that the official evaluations read.

geneval                 NNNNN/metadata.jsonl and NNNNN/samples/0000.png to 0003.png
dpg-bench               ITEM.png: its four pictures in two rows
wise-*, mjhq, mscoco    ID.png
"""

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from PIL import Image

from harmon.evaluation.drawings import DrawnPicture, drawn_pictures
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # ids come from published files, and become names here
COLUMNS = 2  # of DPG-Bench's sheets: its script cuts them into four


def write_tree(dataset: Dataset, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Write the pictures of `dataset` into `folder`; the number of files. A file that is there is written anew.

    Raises:
        HarmonError: an id of a prompt cannot be a file's name.
    """
    files, done, total = 0, 0, dataset.total_rows
    for pictures in _by_prompt(dataset):
        item = pictures[0].prompt.id
        if not PLAIN.fullmatch(item):
            raise HarmonError(
                f"{pictures[0].where}: {item[:60]!r} cannot be the name of a file; fetch the prompts anew."
            )
        for name, data in _files(pictures):
            _put(folder / name, data)
            files += 1
        done += len(pictures)
        if on_progress:
            on_progress(done, total)
    return files


def _by_prompt(dataset: Dataset) -> Iterator[list[DrawnPicture]]:
    for shard in dataset.shard_numbers:
        for _, some in groupby(drawn_pictures(dataset, shard), key=lambda picture: picture.prompt.id):
            yield list(some)


def _files(pictures: list[DrawnPicture]) -> Iterator[tuple[str, bytes]]:
    prompt = pictures[0].prompt
    if prompt.benchmark == "geneval":
        yield f"{prompt.id}/metadata.jsonl", json.dumps(dict(prompt.record)).encode()
        for picture in pictures:
            yield f"{prompt.id}/samples/{picture.number:04}.png", picture.read()
    elif prompt.benchmark == "dpg-bench":
        yield f"{prompt.id}.png", _sheet([picture.read() for picture in pictures])
    else:
        yield f"{prompt.id}.png", pictures[0].read()


def _sheet(pngs: list[bytes]) -> bytes:
    opened = [Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB") for png in pngs]
    width, height = opened[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(opened) // COLUMNS) * height))
    for place, picture in enumerate(opened):
        sheet.paste(picture, (place % COLUMNS * width, place // COLUMNS * height))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
