"""MMStar: 1,500 questions that need their picture; the options stand in the question (Lin-Chen/MMStar; EVALS.md 2.7).

From the hub     mmstar.parquet or val-*.parquet
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import files_of
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.prompting import LETTER, LLAVA, LMMS_EVAL
from harmon.evaluation.question import Question

VARIANTS = (LLAVA, LMMS_EVAL)
ANSWERS = ("A", "B", "C", "D")


def read_mmstar(folder: Path, variant: str) -> Iterator[Question]:
    """The questions of the split `val`."""
    paths = files_of(folder, "**/mmstar.parquet", "**/val-*.parquet", named="MMStar")
    for row in read_parquet(paths, ("index", "question", "answer", "category", "l2_category")):
        text = row.text("question")
        asked = text.strip() if variant == LMMS_EVAL else text
        prompt = f"{asked}\n{LETTER.rstrip('.') if variant == LMMS_EVAL else LETTER}"  # lmms-eval's has no full stop
        facts = {"category": row.text("category"), "l2_category": row.text("l2_category")}
        answer = row.one_of(ANSWERS, "answer")
        yield Question("mmstar", row.text("index"), text, prompt, (row.picture(),), answer, facts=facts)
