"""DPG-Bench: 1,065 dense prompts, four pictures each, and questions about them (TencentQQGYLab/ELLA; EVALS.md 3.5).

As published     dpg_bench.csv, a row for each question

The official script skips the first row of the file, and with it a question of the first prompt; nothing is skipped
here, and `record` tells the scorer every question in order.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harmon.evaluation.files.found import OTHER, Record, files_of
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.counts import DPG_IMAGES_A_PROMPT
from pipelines.errors import HarmonError

COLUMNS = (
    "item_id", "text", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
    "question_natural_language",
)  # fmt: skip
MAX_CELL = 1 << 20  # characters


def read_dpg(folder: Path, references: bool = False) -> Iterator[Prompt]:
    """The prompts in order; an id is the name of the picture's file. `record` has `questions`: id, dependency (ids; 0
    for none), category, detail, tuple and question each."""
    path = files_of(folder, "**/dpg_bench.csv", named="DPG-Bench")[0]
    items: dict[str, list[Record]] = defaultdict(list)
    for row in read_csv(path, COLUMNS):
        items[row.text("item_id")].append(row)
    for item, rows in items.items():
        text = rows[0].text("text")
        if other := next((row for row in rows if row.text("text") != text), None):
            raise other.wrong("text", f"another prompt than the earlier rows of {item} have")
        questions = [_question(row) for row in rows]
        ids = {one["id"] for one in questions}
        if len(ids) != len(questions):
            raise rows[0].wrong("proposition_id", f"one that {item} has twice")
        for row, one in zip(rows, questions, strict=True):
            if unknown := [str(parent) for parent in one["dependency"] if parent and parent not in ids]:
                raise row.wrong("dependency", f"{', '.join(unknown)}, which is no question of {item}")
        yield Prompt("dpg-bench", item, text, DPG_IMAGES_A_PROMPT, {}, {"questions": questions})


def _question(row: Record) -> dict[str, Any]:
    parents = [part.strip() for part in row.text("dependency").split(",")]
    if not all(part.isdecimal() for part in parents):
        raise row.wrong("dependency", f"{row.text('dependency')[:40]!r}, where ids are read")
    return {
        "id": row.number("proposition_id"),
        "dependency": [int(part) for part in parents],
        "category": row.optional("category_broad"),
        "detail": row.optional("category_detailed"),
        "tuple": row.text("tuple"),
        "question": row.text("question_natural_language"),
    }


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """The rows of a comma-separated file. Raises HarmonError where it lacks one of `columns`, or is damaged."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, strict=True)
            if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
                there = ", ".join(rows.fieldnames or ())[:300]
                raise HarmonError(f"{path} has no column {', '.join(map(repr, missing))}, but {there}; {OTHER}.")
            for values in rows:
                number += 1
                where = f"{path}, row {number}"
                if None in values or None in values.values():
                    raise HarmonError(f"{where} has more or fewer cells than the first line; fetch that file anew.")
                yield Record(where, values)
    except (csv.Error, UnicodeDecodeError) as error:
        raise HarmonError(f"{path}, row {number + 1} cannot be read ({error}); fetch that file anew.") from None
