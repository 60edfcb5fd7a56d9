"""A detector and a colour classifier as an examiner of a run's pictures: the columns that `harmon evaluate` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harmon.evaluation.detectors.seen import ColourClassifier, Detector
from harmon.evaluation.detectors.verdicts import judge_pictures
from harmon.evaluation.drawn import Drawn
from harmon.evaluation.scorers.geneval import OFFICIAL, Rules
from pipelines.workspace import Journal


class GenEvalExaminer:
    """Decides GenEval's pictures by what a detector sees."""

    def __init__(self, detector: Detector, colours: ColourClassifier, rules: Rules = OFFICIAL) -> None:
        self._detector, self._colours, self._rules = detector, colours, rules

    @property
    def name(self) -> str:
        return f"{self._detector.label}; colours by {self._colours.label}"

    @property
    def configuration(self) -> Mapping[str, Any]:
        rules = [getattr(self._rules, name) for name in sorted(self._rules.__dataclass_fields__)]
        told = {"kind": "geneval-detector", "detector": self._detector.label, "colours": self._colours.label}
        return told | {"rules": rules}

    @property
    def differs(self) -> Sequence[str]:
        official = () if self._detector.official else (f"objects by {self._detector.label}",)
        return (*official, f"colours by {self._colours.label}")

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> list[Mapping[str, Any]]:
        """The verdict on each picture and its reason, in the official words."""
        del journal  # a shard of pictures is minutes of a detector; there is nothing worth keeping
        return [
            {"correct": row.correct, "why": row.reason, "status": "ok", "reason": None}
            for row in judge_pictures(pictures, self._detector, self._colours, self._rules)
        ]
