"""A detector and a colour classifier as an examiner of a run's pictures: the columns that `harmon evaluate` keeps.

With a detector of ours the score is never called GenEval's alone: `name` and `differs` say whose boxes and colours
decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from harmon.evaluation.detectors.seen import ColourClassifier, Detector, Seen
from harmon.evaluation.drawn import Drawn
from harmon.evaluation.question import opened
from harmon.evaluation.scorers.geneval import OFFICIAL, Detection, Prompt, Rules, judge, kept
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
        told = {"kind": "geneval-detector", "detector": self._detector.label, "colours": self._colours.label}
        return told | {"rules": asdict(self._rules)}

    @property
    def differs(self) -> Sequence[str]:
        return f"Objects are those of {self._detector.label}.", f"Colours are told by {self._colours.label}."

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> list[Mapping[str, Any]]:
        """The verdict on each picture and its reason, in the official words.

        Raises HarmonError for a picture that cannot be decoded.
        """
        del journal  # a shard of pictures is minutes of a detector; there is nothing worth keeping
        return [self._verdict(picture) for picture in pictures]

    def _verdict(self, picture: Drawn) -> Mapping[str, Any]:
        prompt, image = Prompt.of(picture.prompt.record), opened(picture.read(), picture.where)
        detections = with_colours(prompt, image, self._detector.detect(image), self._colours, self._rules)
        verdict = judge(prompt, detections, self._rules)
        return {"correct": verdict.correct, "why": verdict.reason, "status": "ok", "reason": None}


def with_colours(
    prompt: Prompt, image: Image.Image, seen: Mapping[str, Sequence[Seen]], colours: ColourClassifier, rules: Rules
) -> dict[str, list[Detection]]:
    """The detections of a picture by name, with a colour for those whose colour decides and for no other."""
    found = {name: [one.detection for one in some] for name, some in seen.items()}
    for wanted in prompt.include:
        if wanted.colour is None or wanted.name not in seen:
            continue
        decide = kept(found[wanted.name], prompt.tag, rules)[: wanted.count]
        if len(decide) < wanted.count:
            continue  # too few of them: no colour is asked, as officially
        places = [next(i for i, known in enumerate(found[wanted.name]) if known is one) for one in decide]
        told = colours.colours(image, wanted.name, [seen[wanted.name][place] for place in places])
        for place, colour in zip(places, told, strict=True):
            detection = found[wanted.name][place]
            found[wanted.name][place] = Detection(detection.box, detection.score, colour)
    return found
