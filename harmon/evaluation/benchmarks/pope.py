"""POPE: is there such an object in the picture? (RUCAIBox/POPE; EVALS.md 2.1)

As published     coco_pope_{random,popular,adversarial}.json, JSON lines, and COCO's val2014 as folder or zip
From the hub     lmms-lab/POPE: Full/{split}-*.parquet, or its default test-*.parquet, where `category` is the split

The random file of 2023 (LLaVA's eval.zip has it) holds 2,910 questions: another list, which the count refuses.
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, file_of, files_of, json_lines
from harmon.evaluation.files.images import Images
from harmon.evaluation.files.parquet import ParquetRow, read_parquet
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, VLMEVALKIT, worded
from harmon.evaluation.question import Picture, Question
from harmon.evaluation.scorers.counts import POPE_SPLITS

SPLITS = POPE_SPLITS
VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)
LABELS = ("yes", "no")


def read_pope(folder: Path, variant: str, splits: tuple[str, ...] = SPLITS) -> Iterator[Question]:
    """The questions of the splits, one after the other."""
    published = any(folder.glob("**/coco_pope_*.json"))
    for split in splits:
        if published:
            images = Images(folder, ("val2014", "images/val2014", "val2014.zip"))
            path = file_of(folder, f"**/coco_pope_{split}.json", named=f"questions of the split {split}")
            for row in json_lines(path):
                picture = images.find(row.where, row.text("image"))
                yield _question(row, split, row.text("text"), row.text("label"), picture, variant)
        else:
            for found in _rows(folder, split):
                answer = found.text("answer").strip().lower()
                yield _question(found, split, found.text("question"), answer, found.picture(), variant)


def _rows(folder: Path, split: str) -> Iterator[ParquetRow]:
    paths = files_of(folder, f"**/{split}-*.parquet", "**/test-*.parquet", named="POPE")
    columns = ("question_id", "question", "answer", "category")
    for row in read_parquet(paths, columns):
        if row.one_of(SPLITS, "category") == split:
            yield row


def _question(row: Record, split: str, text: str, label: str, picture: Picture, variant: str) -> Question:
    if label not in LABELS:
        raise row.wrong("label", f"{label!r}, neither yes nor no")
    prompt = text if variant == VLMEVALKIT else worded(text.strip() if variant == LMMS_EVAL else text)
    number = row.text("question_id")
    return Question("pope", f"{split}/{number}", text, prompt, (picture,), label, facts={"split": split})
