"""GenEval's verdict on each drawn picture, a row each, and the score over them.

With a detector of ours the score is never called GenEval's alone: `name` and `differs` of every row and report say
whose boxes and colours decided. The official verdicts come from the official evaluation's own file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from harmon.evaluation.detectors.official import DetectedPicture
from harmon.evaluation.detectors.seen import ColourClassifier, Detector, Seen
from harmon.evaluation.drawn import Drawn
from harmon.evaluation.question import Prompt as Drawable
from harmon.evaluation.question import opened
from harmon.evaluation.scorers.counts import GENEVAL_IMAGES_A_PROMPT
from harmon.evaluation.scorers.geneval import OFFICIAL, Detection, Prompt, Rules, judge, kept
from harmon.evaluation.scorers.geneval_scores import GenEvalScores, Judged, score
from pipelines.errors import HarmonError

OFFICIAL_NAME = "GenEval"
OURS = "GenEval (another detector)"


@dataclass(frozen=True)
class GenEvalRow:
    """The verdict on one picture, and the boxes that it came from (above 0.3, in pixels; the sixth value: a colour)."""

    key: str
    prompt: str
    number: int
    tag: str
    correct: bool
    reason: str
    detections: Mapping[str, Sequence[Detection]]
    name: str
    """`GenEval` where the official evaluation decided."""
    detector: str
    colours: str

    def report(self) -> dict[str, Any]:
        """As JSON."""
        boxes = {name: [[*one.box, one.score, one.colour] for one in some] for name, some in self.detections.items()}
        return {**asdict(self), "detections": boxes}


@dataclass(frozen=True)
class GenEvalReport:
    """The score, what decided it, and why it is not the official number, where it is not."""

    name: str
    scores: GenEvalScores
    detector: str
    colours: str
    differs: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "detector": self.detector,
            "colours": self.colours,
            "differs": list(self.differs),
            **self.scores.report(),
        }


def judge_pictures(
    drawn: Iterable[Drawn], detector: Detector, colours: ColourClassifier, rules: Rules = OFFICIAL
) -> Iterator[GenEvalRow]:
    """A row for each picture, in order. Raises HarmonError for a picture that cannot be decoded."""
    for one in drawn:
        prompt = Prompt.of(one.prompt.record)
        image = opened(one.read(), one.where)
        seen = detector.detect(image)
        detections = with_colours(prompt, image, seen, colours, rules)
        verdict = judge(prompt, detections, rules)
        yield GenEvalRow(
            key=one.key,
            prompt=one.prompt.id,
            number=one.number,
            tag=prompt.tag,
            correct=verdict.correct,
            reason=verdict.reason,
            detections=detections,
            name=OFFICIAL_NAME if detector.official else OURS,
            detector=detector.label,
            colours=colours.label,
        )


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


def official_rows(
    pictures: Iterable[DetectedPicture], prompts: Sequence[Drawable], source: str, rules: Rules = OFFICIAL
) -> Iterator[GenEvalRow]:
    """Rows from a file of detections (`read_detections`); `source` says whose they are where it has no verdicts.

    Where the file has the official verdict, that is taken, and compared with ours over the same boxes wherever no
    colour decides: the file does not hold colours.

    Raises:
        HarmonError: a line is of no prompt, of a picture that there is not, of one told before, or its verdict does not
            follow from its boxes.
    """
    known = {prompt.id: prompt for prompt in prompts}
    told: set[tuple[str, int]] = set()
    for one in pictures:
        prompt = known.get(one.prompt)
        if prompt is None or one.number >= GENEVAL_IMAGES_A_PROMPT:
            raise HarmonError(f"{one.where}: there is no picture {one.number} of a prompt {one.prompt} in this run.")
        if (one.prompt, one.number) in told:
            raise HarmonError(
                f"{one.where}: picture {one.number} of prompt {one.prompt} is told before; keep one line."
            )
        if one.text != prompt.text:
            raise HarmonError(f"{one.where}: prompt {one.prompt} is {prompt.text!r}, not {one.text[:80]!r}.")
        told.add((one.prompt, one.number))
        asked = Prompt.of(prompt.record)
        correct, reason = one.correct, one.reason
        if correct is None or not any(wanted.colour for wanted in asked.include):
            verdict = judge(asked, one.detections, rules)
            if correct is not None and correct != verdict.correct:
                ours = verdict.reason or "all is there"
                raise HarmonError(
                    f"{one.where}: the verdict {correct} does not follow from its boxes ({ours}); the file was made "
                    "with other rules."
                )
            correct, reason = verdict.correct, verdict.reason
        yield GenEvalRow(
            key=f"{one.prompt}/{one.number:04}",
            prompt=one.prompt,
            number=one.number,
            tag=asked.tag,
            correct=correct,
            reason=reason,
            detections=one.detections,
            name=OFFICIAL_NAME if one.correct is not None else OURS,
            detector="the official evaluation" if one.correct is not None else source,
            colours="the official evaluation" if one.correct is not None else source,
        )


def score_geneval(rows: Sequence[GenEvalRow], *, partial: bool = False) -> GenEvalReport:
    """GenEval over its rows, 2212 of them unless `partial`.

    Raises:
        HarmonError: another number of pictures, or rows of several detectors.
    """
    if len({(row.name, row.detector, row.colours) for row in rows}) > 1:
        raise HarmonError("GenEval: the pictures were judged by several detectors; judge all of them with one.")
    scores = score([Judged(row.tag, row.prompt, row.correct) for row in rows], partial=partial)
    first = rows[0]
    differs = []
    if first.name != OFFICIAL_NAME:
        differs += [f"detector: {first.detector}", f"colours: {first.colours}"]
    if partial:
        differs.append(f"{scores.images} pictures of 2212")
    return GenEvalReport(first.name, scores, first.detector, first.colours, tuple(differs))
