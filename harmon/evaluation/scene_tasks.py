"""GenEval's six tasks on generated scenes, whose ground truth is exact: no detector and no judge.

    single_object   one object: its shape
    colors          one object: its colour
    two_object      two objects: exactly their two shapes
    color_attr      two objects: exactly the two, each shape with its own colour
    position        two objects: each in the ninth of the picture that the prompt names, told apart by what they do not
                    share, their shape or their colour
    counting        two objects or more: as many as asked for

Stricter than GenEval where leniency could be bought: a picture with more objects than asked for is wrong.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from harmon.evaluation.scenes import Judged, Score, guess, pairs_match
from harmon.evaluation.sight import SeenObject
from pipelines.scenes import COLOURS, SHAPES, SceneObject

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
TASKS: tuple[Task, ...] = get_args(Task)


def score_tasks(judged: Iterable[Judged]) -> dict[Task, Score]:
    """The score of every task that a picture is about, in the order of TASKS."""
    right: dict[Task, list[bool]] = {task: [] for task in TASKS}
    chance: dict[Task, list[float]] = {task: [] for task in TASKS}

    def count(task: Task, is_right: bool, level: float | None = None) -> None:
        right[task].append(is_right)
        chance[task] += [] if level is None else [level]

    numbers: Counter[int] = Counter()
    for one in judged:
        pairs = one.wanted.pairs
        if len(pairs) == 1:
            count("single_object", one.shapes, guess(pairs, 1, len(SHAPES)))
            count("colors", one.colours, guess(pairs, 0, len(COLOURS)))
            continue
        count("counting", one.whole)
        numbers[len(pairs)] += 1
        if len(pairs) == 2:
            count("two_object", one.shapes, guess(pairs, 1, len(SHAPES)))
            count("color_attr", pairs_match(one), guess(pairs, None, len(COLOURS) * len(SHAPES)))
            count("position", in_place(one))
    # what costs nothing of counting is always to draw the number that is asked for most often
    chance["counting"] = [max(numbers.values(), default=0) / max(1, numbers.total())]
    return {
        task: Score(sum(some), len(some), sum(chance[task]) / len(chance[task]) if chance[task] else None)
        for task, some in right.items()
        if some
    }


def in_place(one: Judged) -> bool:
    """Whether each object stands where the prompt says, by an attribute in which the objects differ."""
    wanted, seen = one.wanted.pairs, one.sight.objects
    for part in (0, 1):
        names = [pair[part] for pair in wanted]
        there = [(item.colour, item.shape)[part] for item in seen]
        placed = Counter(zip(there, map(_place, seen), strict=True))
        if len(set(names)) == len(names) and placed == Counter(zip(names, one.wanted.places, strict=True)):
            return True
    return False


def _place(seen: SeenObject) -> str:
    return SceneObject(seen.colour, seen.shape, "medium", seen.x, seen.y, 0.0).place
