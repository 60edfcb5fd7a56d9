"""MMBench, English dev: options A to D, each question asked again with its options turned (EVALS.md 2.3).

As published     MMBench_DEV_EN.tsv (v1.0) or MMBench_DEV_EN_V11.tsv (v1.1), pictures in base64

Rows with an index of a million and more are rotations: the rest of the index names the first row. CircularEval counts a
question where all its rotations are right, vanilla looks at rotation 0 alone. A short cell in place of the picture
names the row that has it.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import OTHER, file_of, is_absent
from harmon.evaluation.files.tsv import TableRow, read_table
from harmon.evaluation.prompting import LLAVA, LMMS_EVAL, VLMEVALKIT, lettered, selected, several
from harmon.evaluation.question import Picture, Question
from pipelines.errors import HarmonError

FILE, FILE_V11 = "MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv"
VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)
TURN = 1_000_000
COLUMNS = ("index", "question", "hint", "A", "B", "answer", "category")
LETTERS = "ABCD"


def read_mmbench(folder: Path, variant: str, file: str = FILE) -> Iterator[Question]:
    """The questions, the rotations of one beside each other and in order."""
    path = file_of(folder, f"**/{file}", named="MMBench")
    rows: dict[int, TableRow] = {}
    turns: dict[int, list[int]] = defaultdict(list)
    for row in read_table(path, COLUMNS):
        index = row.number("index")
        if index in rows:
            raise row.wrong("index", f"{index}, which an earlier row has, too")
        rows[index] = row
        turns[index % TURN].append(index)
    for base, indices in turns.items():
        _check_turns(rows, base, sorted(indices))
        for index in sorted(indices):
            yield _question(rows[index], base, index // TURN, _picture(rows, rows[index]), variant, path)


def _check_turns(rows: dict[int, TableRow], base: int, indices: list[int]) -> None:
    row = rows[indices[0]]
    options = _options(row)
    if [index // TURN for index in indices] != list(range(len(options))):
        raise HarmonError(
            f"{row.where}: the question {base} has the rows {indices}, not one for each of its {len(options)} "
            f"options; {OTHER}."
        )
    for index in indices:
        if len(_options(rows[index])) != len(options):
            raise HarmonError(f"{rows[index].where} has other options than row {base}, whose rotation it is.")


def _options(row: TableRow) -> dict[str, str]:
    """Options by letter; those that are absent come last."""
    cells = {letter: row.values.get(letter, "") for letter in LETTERS}
    options = {letter: text for letter, text in cells.items() if not is_absent(text)}
    if len(options) < 2 or list(options) != list(LETTERS[: len(options)]):
        raise row.wrong("A", f"one of the options {', '.join(options) or 'none'}, where A, B and on are read")
    return options


def _picture(rows: dict[int, TableRow], row: TableRow) -> Picture:
    if not row.same_as:
        return row.picture
    other = rows.get(int(row.same_as)) if row.same_as.isdecimal() else None
    if other is None or other.same_as:
        raise row.wrong("image", f"{row.same_as!r}, neither a picture nor the index of a row that has one")
    return other.picture


def _question(row: TableRow, base: int, turn: int, picture: Picture, variant: str, path: Path) -> Question:
    options, text, hint = _options(row), row.text("question"), row.optional("hint")
    build = {LLAVA: lettered, LMMS_EVAL: several, VLMEVALKIT: selected}[variant]
    facts = {
        "category": row.text("category"),
        "l2-category": row.optional("l2-category", "L2-category"),
        "base": str(base),
        "rotation": str(turn),
        "hint": hint,
    }
    name = "mmbench-dev-en-v11" if path.name == FILE_V11 else "mmbench-dev-en"
    return Question(
        name, str(turn * TURN + base), text, build(text, options, hint), (picture,),
        row.one_of(list(options), "answer"), options, facts, group=str(base),
    )  # fmt: skip
