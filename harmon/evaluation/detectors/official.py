"""GenEval's own evaluation, by the file that it writes (`results.jsonl` of `evaluate_images.py --outfile`).

A line holds `filename` (…/00012/samples/0003.png), `tag`, `prompt`, `correct`, `reason`, and `details`: the boxes that
counted, by name, each x0, y0, x1, y1, score. A file of detections from elsewhere has the same lines without `correct`;
a sixth value of a box is its colour. Neither holds what pictures it saw, so it must be made from those that `--export`
wrote of the same run; where the files that it names are still there, they are compared with the run's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.files.found import Record, json_lines
from harmon.evaluation.scorers.geneval import COLOURS, OFFICIAL, Detection, Prompt, Verdict, judge
from pipelines.coco_names import COCO_NAMES
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.storage import file_sha256
from pipelines.workspace import Journal

MOST_BOXES = 1000  # of one class in one picture
_FILE = re.compile(r"(?:.*[\\/])?(\d{1,5})[\\/]samples[\\/](\d{1,5})\.png")


@dataclass(frozen=True)
class DetectedPicture:
    """One line: which picture, its prompt, the boxes, and the official verdict where it has one."""

    where: str
    file: str
    key: str
    """As of the picture that a run drew: the prompt's folder and the picture's number."""
    tag: str
    text: str
    detections: Mapping[str, tuple[Detection, ...]]
    correct: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class GenEvalResults:
    """An examiner (harmon.evaluation.examiner) that has looked already, elsewhere.

    An official verdict is taken, and compared with ours over the same boxes wherever no colour decides: the file does
    not hold colours. Detections without verdicts are judged here, and are never called GenEval's own.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ConfigurationError(f"There is no {self.path}; name the results.jsonl that GenEval wrote.")

    @property
    def name(self) -> str:
        if self._official:
            return f"GenEval's own detector, as {self.path.name} says"
        return f"detections of {self.path.name}, judged here"

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        if self._official:
            return {"kind": "geneval-results", "sha256": file_sha256(self.path)}
        return {"kind": "geneval-detections", "sha256": file_sha256(self.path), "rules": asdict(OFFICIAL)}

    @property
    def differs(self) -> Sequence[str]:
        return () if self._official else (f"Objects and colours are those of {self.path.name}, not of GenEval’s own.",)

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> list[Mapping[str, Any]]:
        """The verdict on each picture; one that the file does not name has failed.

        Raises:
            HarmonError: a line is not as described or of another prompt, or its verdict does not follow from its boxes.
        """
        del journal  # nothing of it takes long
        return [self._columns(picture) for picture in pictures]

    @cached_property
    def _lines(self) -> dict[str, DetectedPicture]:
        found: dict[str, DetectedPicture] = {}
        for one in read_detections(self.path):
            if one.key in found:
                raise HarmonError(f"{one.where}: the picture {one.key} is told before; name the file of one run.")
            found[one.key] = one
        if len({one.correct is None for one in found.values()}) > 1:
            raise HarmonError(f"{self.path} has verdicts in some lines and none in others; name the file of one run.")
        return found

    @cached_property
    def _official(self) -> bool:
        return all(one.correct is not None for one in self._lines.values())

    def _columns(self, picture: Drawn) -> Mapping[str, Any]:
        one = self._lines.get(picture.key)
        if one is None:
            reason = f"{self.path.name} has no line of it"
            return {"correct": None, "why": None, "status": "failed", "reason": reason}
        if one.text != picture.prompt.text:
            drawn = picture.prompt.text[:80]
            raise HarmonError(f"{one.where}: its prompt is {one.text[:80]!r}, where {drawn!r} was drawn.")
        if _is_other(Path(one.file), picture.read()):
            raise HarmonError(
                f"{one.where}: {one.file} is not the picture {picture.key} of this run; name the file that was made of "
                "its own pictures (--export)."
            )
        verdict = _verdict(one, Prompt.of(picture.prompt.record))
        return {"correct": verdict.correct, "why": verdict.reason, "status": "ok", "reason": None}


def _is_other(file: Path, picture: bytes) -> bool:
    """Whether the file is there and no such picture."""
    try:
        return file.stat().st_size != len(picture) or file.read_bytes() != picture
    except OSError:  # written on another machine, or gone since
        return False


def _verdict(one: DetectedPicture, asked: Prompt) -> Verdict:
    """Of one line. Raises HarmonError where it does not follow from the boxes."""
    if one.correct is None:
        return judge(asked, one.detections)
    if not any(wanted.colour for wanted in asked.include):
        # the boxes come surest first, and of equal scores `judge` would take the later one first
        ours = judge(asked, {name: boxes[::-1] for name, boxes in one.detections.items()})
        if one.correct != ours.correct:
            raise HarmonError(
                f"{one.where}: the verdict {one.correct} does not follow from its boxes "
                f"({ours.reason or 'all is there'}); the file was made with other rules."
            )
    return Verdict(one.correct, one.reason)


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
            file=row.text("filename"),
            key=f"{int(name[1]):05}/{int(name[2]):04}",
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
