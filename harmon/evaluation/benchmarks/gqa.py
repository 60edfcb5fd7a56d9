"""GQA, balanced test-dev: open questions answered in a word (EVALS.md 2.5).

As published     testdev_balanced_questions.json and images as folder or images.zip (IMAGEID.jpg)
From the hub     lmms-lab/GQA: testdev_balanced_instructions/ and testdev_balanced_images/, testdev-*.parquet each
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, file_of, files_of, json_mapping
from harmon.evaluation.files.images import Images
from harmon.evaluation.files.parquet import ParquetPicture, read_parquet
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, VLMEVALKIT, worded
from harmon.evaluation.question import Picture, Question
from pipelines.errors import HarmonError

VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)  # which ask alike: only what is done with the answer differs
QUESTIONS = "testdev_balanced_questions.json"


def read_gqa(folder: Path, variant: str) -> Iterator[Question]:
    """The balanced questions in the order of the file."""
    if any(folder.glob(f"**/{QUESTIONS}")):
        yield from _published(file_of(folder, f"**/{QUESTIONS}", named="GQA"), folder)
    else:
        yield from _hub(folder)


def _published(path: Path, folder: Path) -> Iterator[Question]:
    images = Images(folder, ("images", "images.zip"))
    for number, row in json_mapping(path):
        yield _question(row, number, images.find(row.where, f"{row.text('imageId')}.jpg"))


def _hub(folder: Path) -> Iterator[Question]:
    found = files_of(folder, "**/testdev_balanced_images/testdev-*.parquet", named="pictures of GQA")
    pictures: dict[str, ParquetPicture] = {row.text("id"): row.picture() for row in read_parquet(found, ("id",))}
    asked = files_of(folder, "**/testdev_balanced_instructions/testdev-*.parquet", named="questions of GQA")
    columns = ("id", "imageId", "question", "answer")
    for row in read_parquet(asked, columns, pictures=(), optional=("types", "isBalanced")):
        name = row.text("imageId")
        if name not in pictures:
            raise HarmonError(f"{row.where}: its picture {name} is not in {found[0].parent}; fetch that anew.")
        yield _question(row, row.text("id"), pictures[name])


def _question(row: Record, number: str, picture: Picture) -> Question:
    if row.values.get("isBalanced") not in (True, None):
        raise row.wrong("isBalanced", "not true, so that the file is that of all questions")
    types = row.values.get("types")
    facts = {name: str(types.get(name) or "") for name in ("structural", "semantic", "detailed")} if types else {}
    text = row.text("question")
    return Question("gqa", number, text, worded(text), (picture,), row.text("answer"), facts=facts)
