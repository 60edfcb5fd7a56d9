"""GenEval: does a picture show the objects, number, colours or places that its prompt asks for, by what a detector saw.

The decision of djghosh13/geneval `evaluation/evaluate_images.py` over detections from anywhere: where they come from
(the official Mask2Former or another detector) decides whether the score is GenEval's, so say so beside it. Colours
come with the detections; the official ones are CLIP's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import HarmonError

Relation = Literal["left of", "right of", "above", "below"]
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_NO_OFFSET = 1e-3  # pixels beyond the dead zone that still count as none
_DIRECTION = 0.5


@dataclass(frozen=True)
class Rules:
    """The official numbers: scores must be above these, at most so many boxes a class, boxes that overlap more are
    dropped (1: none is), and offsets within this share of both widths or heights together are none."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


OFFICIAL = Rules()


@dataclass(frozen=True)
class Detection:
    """One box of a class: corners x0, y0, x1, y1 in pixels, the detector's score, and its colour where one was
    told."""

    box: tuple[float, float, float, float]
    score: float
    colour: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Objects of `name` that a prompt asks for: how many, in which colour, and where seen from the group of objects
    with index `target`."""

    name: str
    count: int
    colour: str | None = None
    relation: Relation | None = None
    target: int = 0


@dataclass(frozen=True)
class Prompt:
    """One line of `evaluation_metadata.jsonl`: its task, text, what must be there and what must not."""

    tag: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Prompt":
        """From the published JSON object."""
        include, exclude = (tuple(map(_wanted, metadata.get(key, ()))) for key in ("include", "exclude"))
        return cls(metadata["tag"], metadata["prompt"], include, exclude)


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what its prompt asks for, and each reason why not, in the official words."""

    correct: bool
    reason: str


def overlap(box_a: Sequence[float], box_b: Sequence[float]) -> float:
    """Shared part of two boxes of all that they cover, counting pixels at both edges; 0 where they cover none.

    `compute_iou`.
    """
    shared = _area(
        (
            max(box_a[0], box_b[0]),
            max(box_a[1], box_b[1]),
            min(box_a[2], box_b[2]),
            min(box_a[3], box_b[3]),
        )
    )
    covered = _area(box_a) + _area(box_b) - shared
    return shared / covered if covered else 0.0


def relations(box_a: Sequence[float], box_b: Sequence[float], dead_zone: float = 0.1) -> set[Relation]:
    """Where A is seen from B, by their centres: none within `dead_zone` of both sizes together, else each direction
    that the rest of the offset makes more than half of the whole; a diagonal is two.

    `relative_position`.
    """
    corners: NDArray[np.float64] = np.array([box_a[:4], box_b[:4]], dtype=np.float64).reshape(2, 2, 2)
    centre_a, centre_b = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    offset = centre_a - centre_b
    beyond = np.maximum(np.abs(offset) - dead_zone * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < _NO_OFFSET):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    directions: tuple[tuple[Relation, bool], ...] = (
        ("left of", bool(x < -_DIRECTION)),
        ("right of", bool(x > _DIRECTION)),
        ("above", bool(y < -_DIRECTION)),
        ("below", bool(y > _DIRECTION)),
    )
    return {relation for relation, holds in directions if holds}


def kept(detections: Sequence[Detection], tag: str, rules: Rules = OFFICIAL) -> list[Detection]:
    """The boxes of one class that count for task `tag`, most certain first.

    `evaluate_image`; of equal scores the later box comes first, as there.
    """
    threshold = rules.counting_threshold if tag == "counting" else rules.threshold
    order = np.argsort([detection.score for detection in detections], kind="stable")[::-1]
    remaining = [detections[number] for number in order if detections[number].score > threshold][: rules.max_objects]
    found: list[Detection] = []
    while remaining:
        best = remaining.pop(0)
        found.append(best)
        if rules.max_overlap != 1:
            remaining = [other for other in remaining if overlap(best.box, other.box) < rules.max_overlap]
    return found


def judge(prompt: Prompt, detections: Mapping[str, Sequence[Detection]], rules: Rules = OFFICIAL) -> Verdict:
    """Whether a picture with these `detections`, by class, shows what `prompt` asks for.

    Only as many boxes as are asked for count, the most certain ones: colours and places look at these alone. Where
    places are wrong, the directions found are told in alphabetical order, officially in any.

    `evaluate`.

    Raises:
        HarmonError: a box whose colour decides has none, or a prompt names a target that comes later.
    """
    found = {name: boxes for name, some in detections.items() if (boxes := kept(some, prompt.tag, rules))}
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for wanted in prompt.include:
        boxes = found.get(wanted.name, [])[: wanted.count]
        reason = _missing(wanted, boxes) or _misplaced(wanted, boxes, groups, rules)
        if reason:
            reasons.append(reason)
        groups.append(None if reason else boxes)
    for wanted in prompt.exclude:
        number = len(found.get(wanted.name, []))
        if number >= wanted.count:
            reasons.append(f"expected {wanted.name}<{wanted.count}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def _wanted(published: Mapping[str, Any]) -> Wanted:
    relation, target = published.get("position", (None, 0))
    return Wanted(published["class"], published["count"], published.get("color"), relation, target)


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def _missing(wanted: Wanted, boxes: Sequence[Detection]) -> str | None:
    """Why the objects or their colours are not there, None where they are."""
    if len(boxes) < wanted.count:
        return f"expected {wanted.name}>={wanted.count}, found {len(boxes)}"
    if wanted.colour is None:
        return None
    colours = [box.colour for box in boxes]
    if None in colours:
        raise HarmonError(
            f"GenEval: a {wanted.name} must be {wanted.colour}, but its detection has no colour; "
            "classify the colours of the boxes first."
        )
    right = colours.count(wanted.colour)
    if right >= wanted.count:
        return None
    seen = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
    asked = f"expected {wanted.colour} {wanted.name}>={wanted.count}"
    return f"{asked}, found {right} {wanted.colour}; and {seen}"


def _misplaced(
    wanted: Wanted, boxes: Sequence[Detection], groups: Sequence[list[Detection] | None], rules: Rules
) -> str | None:
    """Why the objects are not where they should be, None where they are."""
    if wanted.relation is None:
        return None
    if wanted.target >= len(groups):
        raise HarmonError(f"GenEval: {wanted.name} stands {wanted.relation} object {wanted.target}, which comes later.")
    targets = groups[wanted.target]
    if targets is None:
        return f"no target for {wanted.name} to be {wanted.relation}"
    for box in boxes:
        for target in targets:
            seen = relations(box.box, target.box, rules.position_threshold)
            if wanted.relation not in seen:
                found = " and ".join(sorted(seen))
                return f"expected {wanted.name} {wanted.relation} target, found {found} target"
    return None
