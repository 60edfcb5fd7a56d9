"""GenEval's own verdicts, read from the results.jsonl that its evaluation/evaluate_images.py writes.

One line a picture: filename (…/NNNNN/samples/0000.png), tag, prompt, correct, reason. The file does not say which
pictures it saw, so it must be made from those that `--export` wrote of the same run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harmon.evaluation.drawings import DrawnPicture
from harmon.evaluation.files.found import Record, json_lines
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.storage import file_sha256
from pipelines.workspace import Journal

PICTURE = re.compile(r"(\d{5})/samples/(\d{1,5})\.png$")


@dataclass(frozen=True)
class GenEvalResults:
    """An examiner (harmon.evaluation.examiner) that has looked already, elsewhere."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ConfigurationError(f"There is no {self.path}; name the results.jsonl that GenEval wrote.")

    @property
    def name(self) -> str:
        return f"GenEval's own detector, as {self.path.name} says"

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        return {"kind": "geneval-results", "sha256": file_sha256(self.path)}

    @property
    def differs(self) -> Sequence[str]:
        return ()

    def examine(self, pictures: Sequence[DrawnPicture], journal: Journal) -> list[Mapping[str, Any]]:
        """The verdict on each picture; one that the file does not name has failed."""
        return [self._verdict(picture) for picture in pictures]

    @cached_property
    def _lines(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for row in json_lines(self.path):
            named = PICTURE.search(row.text("filename").replace("\\", "/"))
            if named is None:
                raise row.wrong("filename", f"{row.text('filename')[:80]!r}, where NNNNN/samples/0000.png is read")
            key = f"{named[1]}/{int(named[2]):04}"
            if key in found:
                raise HarmonError(f"{row.where}: the picture {key} has a verdict already; name the file of one run.")
            found[key] = row
        return found

    def _verdict(self, picture: DrawnPicture) -> Mapping[str, Any]:
        row = self._lines.get(picture.key)
        if row is None:
            reason = f"{self.path.name} has no verdict on it"
            return {"correct": None, "why": None, "status": "failed", "reason": reason}
        if row.text("prompt") != picture.prompt.text:
            raise row.wrong("prompt", f"{row.text('prompt')[:60]!r}, where {picture.prompt.text[:60]!r} was drawn")
        correct = row.value("correct")
        if not isinstance(correct, bool):
            raise row.wrong("correct", f"{str(correct)[:20]!r}, neither true nor false")
        return {"correct": correct, "why": row.optional("reason"), "status": "ok", "reason": None}
