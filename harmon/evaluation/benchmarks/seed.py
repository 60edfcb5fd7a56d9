"""SEED-Bench, the questions about single pictures: types 1 to 9 of 12 (AILab-CVC/SEED-Bench; EVALS.md 2.4).

As published     SEED-Bench.json and SEED-Bench-image as folder or zip
From the hub     lmms-lab/SEED-Bench: test-*.parquet, where `image` is a list
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, file_of, files_of, json_array
from harmon.evaluation.files.images import Images
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, VLMEVALKIT, lettered, selected
from harmon.evaluation.question import Picture, Question
from harmon.evaluation.scorers.seed import IMAGE_TYPES

VIDEOS = (10, 11, 12)
"""Types of questions about videos; IMAGE_TYPES has the others."""
VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)
CHOICES = {"A": "choice_a", "B": "choice_b", "C": "choice_c", "D": "choice_d"}
FIELDS = ("question_id", "question_type_id", "question", *CHOICES.values(), "answer", "data_type")


def read_seed(folder: Path, variant: str) -> Iterator[Question]:
    """The questions about pictures; those about videos are passed over."""
    if any(folder.glob("**/SEED-Bench.json")):
        images = Images(folder, ("SEED-Bench-image", "SEED-Bench-image.zip"))
        for row in json_array(file_of(folder, "**/SEED-Bench.json", named="SEED-Bench"), "questions"):
            if _is_picture(row):
                yield _question(row, images.find(row.where, *_names(row.text("data_id"))), variant)
    else:
        for found in read_parquet(files_of(folder, "**/test-*.parquet", named="SEED-Bench"), FIELDS):
            if _is_picture(found):
                yield _question(found, found.picture(), variant)


def _names(data_id: str) -> list[str]:
    """A picture's name has no ending in the release; a copy may have one."""
    return [data_id, f"{data_id}.jpg", f"{data_id}.png"]


def _is_picture(row: Record) -> bool:
    kind, medium = row.number("question_type_id"), row.one_of(("image", "video"), "data_type")
    if kind not in (*IMAGE_TYPES, *VIDEOS) or (kind in VIDEOS) != (medium == "video"):
        raise row.wrong("question_type_id", f"{kind}, of data_type {medium}")
    return medium == "image"


def _question(row: Record, picture: Picture, variant: str) -> Question:
    options = {letter: row.text(field) for letter, field in CHOICES.items()}
    text = row.text("question")
    prompt = selected(text, options) if variant == VLMEVALKIT else lettered(text, options)
    kind = row.number("question_type_id")
    facts = {"type": IMAGE_TYPES[kind], "type_id": str(kind)}
    answer = row.one_of(list(options), "answer")
    return Question("seed-bench-image", row.text("question_id"), text, prompt, (picture,), answer, options, facts)
