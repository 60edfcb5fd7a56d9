"""WISE: 1,000 prompts that need knowledge of the world, one picture each (PKU-YuanGroup/WISE; EVALS.md 3.4).

As published     cultural_common_sense.json, spatio-temporal_reasoning.json and natural_science.json

The paper's is the one in WISE_legacy/. WISE_Verified of April 2026 has other prompts, other ranges of ids, another
judge and other weights: one is never read for the other where the files tell.
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, file_of, json_array
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.wise import CATEGORIES

FILES = ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json")
LEGACY = {name: range(one.first, one.last + 1) for name, one in CATEGORIES["legacy"].items()}
VERIFIED = {name: range(one.first, one.last + 1) for name, one in CATEGORIES["verified"].items()}
"""Category to the ids of its prompts."""


def read_wise(folder: Path, references: bool = False, verified: bool = False) -> Iterator[Prompt]:
    """The prompts by their ids; an id is the name of the picture's file. `record` has Explanation, for the judge."""
    ranges = VERIFIED if verified else LEGACY
    rows = [row for file in FILES for row in json_array(file_of(folder, file, f"**/{file}", named="WISE"))]
    for row in sorted(rows, key=lambda row: row.number("prompt_id")):
        category = next((name for name, ids in ranges.items() if row.number("prompt_id") in ids), None)
        if category is None:
            raise row.wrong("prompt_id", f"{row.number('prompt_id')}, and there are 1 to 1000")
        _check_category(row, category, verified)
        facts = {"category": category, "subcategory": row.text("Subcategory")}
        record = {"Prompt": row.text("Prompt"), "Explanation": row.text("Explanation")}
        name = "wise-verified" if verified else "wise-legacy"
        yield Prompt(name, str(row.number("prompt_id")), record["Prompt"], 1, facts, record)


def _check_category(row: Record, category: str, verified: bool) -> None:
    """Raises HarmonError where the row says that it is of another category than its id has in this WISE."""
    said = f"{row.text('Category')} {row.text('Subcategory')}".lower().split()
    others = [name for name in LEGACY if name.lower() in said]
    if len(others) == 1 and others[0] != category:
        raise row.wrong(
            "prompt_id",
            f"{row.number('prompt_id')}, which is {category} in the {'verified' if verified else 'legacy'} WISE, but "
            f"the row says {others[0]}",
        )
