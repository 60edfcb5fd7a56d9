"""OCRBench: 1,000 questions about text in pictures (echo840/OCRBench; EVALS.md 2.7).

From the hub     test-*.parquet
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import files_of
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.prompting import LMMS_EVAL, VLMEVALKIT
from harmon.evaluation.question import Question
from harmon.evaluation.scorers.counts import OCRBENCH

VARIANTS = (LMMS_EVAL, VLMEVALKIT)  # both ask the question as it is


def read_ocrbench(folder: Path, variant: str) -> Iterator[Question]:
    """The questions in order. They have no ids: the number of the row is one."""
    paths = files_of(folder, "**/test-*.parquet", named="OCRBench")
    for number, row in enumerate(read_parquet(paths, ("dataset", "question", "question_type", "answer"))):
        facts = {"type": row.one_of(list(OCRBENCH), "question_type"), "dataset": row.text("dataset")}
        answers = row.items("answer") if isinstance(row.value("answer"), list) else [row.text("answer")]
        if not answers:
            raise row.wrong("answer", "an empty list")
        text = row.text("question")
        yield Question("ocrbench", str(number), text, text.strip(), (row.picture(),), tuple(answers), facts=facts)
