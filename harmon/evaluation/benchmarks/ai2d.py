"""AI2D test: diagrams of school books, with the letters in the picture masked by boxes or not (EVALS.md 2.7).

From the hub     lmms-lab/ai2d: test-*.parquet (with the boxes); lmms-lab/ai2d-no-mask: test-*.parquet (without)

The two differ in the pictures alone, so that a file cannot tell which of them it is: keep them in folders of their own.
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import files_of
from harmon.evaluation.files.parquet import read_parquet
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, VLMEVALKIT, lettered, selected
from harmon.evaluation.question import LETTERS, Question

VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)


def read_ai2d(folder: Path, variant: str, name: str = "ai2d") -> Iterator[Question]:
    """The questions in order. They have no ids: the number of the row is one."""
    paths = files_of(folder, "**/test-*.parquet", named="AI2D")
    for number, row in enumerate(read_parquet(paths, ("question", "options", "answer"))):
        texts, place, text = row.items("options"), row.number("answer"), row.text("question")
        if not 1 < len(texts) <= len(LETTERS) or place >= len(texts):
            raise row.wrong("answer", f"{place}, of {len(texts)} options")
        options = dict(zip(LETTERS, texts, strict=False))
        prompt = selected(text, options) if variant == VLMEVALKIT else lettered(text, options)
        yield Question(name, str(number), text, prompt, (row.picture(),), LETTERS[place], options)
