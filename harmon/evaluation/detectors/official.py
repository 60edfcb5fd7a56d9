"""The official GenEval evaluation, by the file that it writes (`results.jsonl` of `evaluate_images.py --outfile`).

A line holds `filename` (…/00012/samples/0003.png), `tag`, `prompt`, `correct`, `reason`, and `details`: the boxes that
counted, by name, each x0, y0, x1, y1, score. A file of detections from elsewhere has the same lines without `correct`;
a sixth value of a box is its colour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmon.evaluation.files.found import Record, json_lines
from harmon.evaluation.scorers.geneval import COLOURS, Detection
from pipelines.coco_names import COCO_NAMES

MOST_BOXES = 1000  # of one class in one picture
_FILE = re.compile(r"(?:.*[\\/])?(\d{1,5})[\\/]samples[\\/](\d{1,4})\.png")


@dataclass(frozen=True)
class DetectedPicture:
    """One line: the prompt's folder and the picture's number, the boxes, and the official verdict where it has one."""

    where: str
    prompt: str
    number: int
    tag: str
    text: str
    detections: Mapping[str, tuple[Detection, ...]]
    correct: bool | None = None
    reason: str = ""


def read_detections(path: Path) -> Iterator[DetectedPicture]:
    """The lines of a file. Raises HarmonError for one that is not as described."""
    for row in json_lines(path):
        name = _FILE.fullmatch(row.text("filename"))
        if name is None:
            raise row.wrong("filename", f"{row.text('filename')[:80]!r}, where …/00000/samples/0000.png is read")
        correct = row.values.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise row.wrong("correct", f"{correct!r}, where true or false is read")
        yield DetectedPicture(
            where=row.where,
            prompt=f"{int(name[1]):05}",
            number=int(name[2]),
            tag=row.text("tag"),
            text=row.text("prompt"),
            detections=_details(row),
            correct=correct,
            reason=row.optional("reason"),
        )


def _details(row: Record) -> dict[str, tuple[Detection, ...]]:
    value = row.value("details")
    if isinstance(value, str):  # officially JSON within JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise row.wrong("details", "no JSON") from None
    if not isinstance(value, dict):
        raise row.wrong("details", "no boxes by name")
    found: dict[str, tuple[Detection, ...]] = {}
    for name, boxes in value.items():
        if name not in COCO_NAMES:
            raise row.wrong("details", f"boxes of {name[:40]!r}, which is none of COCO's 80 objects")
        if not isinstance(boxes, list) or len(boxes) > MOST_BOXES:
            raise row.wrong("details", f"no list of at most {MOST_BOXES} boxes of {name}")
        found[name] = tuple(_box(row, name, box) for box in boxes)
    return found


def _box(row: Record, name: str, box: Any) -> Detection:
    numbers = box[:5] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(isinstance(one, int | float) and abs(one) < 1e6 for one in numbers):
        raise row.wrong("details", f"a box of {name} that is not x0, y0, x1, y1, score")
    colour = box[5] if len(box) > 5 else None
    if colour is not None and colour not in COLOURS:
        raise row.wrong("details", f"the colour {colour!r} of {name}, which GenEval does not have")
    return Detection((numbers[0], numbers[1], numbers[2], numbers[3]), numbers[4], colour)
