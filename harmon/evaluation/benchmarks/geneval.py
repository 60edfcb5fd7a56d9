"""GenEval: 553 prompts of six tasks, four pictures each (djghosh13/geneval; EVALS.md 3.1).

As published     evaluation_metadata.jsonl
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, file_of, json_lines
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.counts import GENEVAL_IMAGES_A_PROMPT, GENEVAL_PROMPTS


def read_geneval(folder: Path, references: bool = False) -> Iterator[Prompt]:
    """The prompts in order; an id is the folder that the official evaluation reads: 00000 to 00552. `record` is the
    line, which that folder's metadata.jsonl holds."""
    path = file_of(folder, "**/evaluation_metadata.jsonl", named="GenEval")
    for number, row in enumerate(json_lines(path)):
        tag = row.one_of(list(GENEVAL_PROMPTS), "tag")
        _check_objects(row)
        yield Prompt("geneval", f"{number:05}", row.text("prompt"), GENEVAL_IMAGES_A_PROMPT, {"task": tag}, row.values)


def _check_objects(row: Record) -> None:
    for field in ("include", *(("exclude",) if "exclude" in row.values else ())):
        objects = row.value(field)
        if not isinstance(objects, list) or not all(
            isinstance(one, dict) and isinstance(one.get("class"), str) and isinstance(one.get("count"), int)
            for one in objects
        ):
            raise row.wrong(field, "no list of objects with class and count")
