"""MMMU and MMMU-Pro: questions of 30 subjects, some with several pictures (EVALS.md 2.6 and 3.5).

MMMU val           MMMU/MMMU: SUBJECT/validation-*.parquet, or lmms-lab/MMMU: validation-*.parquet
MMMU-Pro           MMMU/MMMU_Pro: `standard (10 options)`, `standard (4 options)` and `vision`, test-*.parquet each

A question and its options say `<image 1>` where a picture belongs; the pictures are those that are named, by number.
MMMU-Pro's `vision` shows question and options in the picture itself.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.files.found import Record, files_of
from harmon.evaluation.files.parquet import ParquetPicture, ParquetRow, read_parquet
from harmon.evaluation.prompting import LETTER, LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT, listed, selected, worded
from harmon.evaluation.question import LETTERS, MARK, Question

VARIANTS = (LLAVA, LMMS_EVAL, VLMEVALKIT)
PRO_VARIANTS = (OFFICIAL, LMMS_EVAL)
COLUMNS = tuple(f"image_{number}" for number in range(1, 8))
FACTS = ("img_type", "topic_difficulty", "subfield")
CHOICE, OPEN = "multiple-choice", "open"
MAX_LITERAL = 1 << 16  # characters of a list that is written out as text
PRO_LETTER = "Answer with the option letter from the given choices directly."
PRO_FORM = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options."
)
STANDARD_10, STANDARD_4, VISION = "standard (10 options)", "standard (4 options)", "vision"


def read_mmmu(folder: Path, variant: str) -> Iterator[Question]:
    """The questions of the validation split, subject by subject."""
    paths = files_of(folder, "**/validation-*.parquet", named="MMMU's validation split")
    columns = ("id", "question", "options", "answer", "question_type")
    for row in read_parquet(paths, columns, COLUMNS, FACTS):
        kind = row.one_of((CHOICE, OPEN), "question_type")
        options = _options(row) if kind == CHOICE else {}
        facts = {"subject": _subject(row), "question_type": kind, **{name: row.optional(name) for name in FACTS}}
        text = row.text("question")
        answer = row.one_of(list(options), "answer") if options else _answers(row)
        pictures, numbers = _pictures(row, text, options)
        prompt = _prompt(text, options, variant)
        yield Question("mmmu-val", row.text("id"), text, prompt, pictures, answer, options, facts, numbers=numbers)


def read_mmmu_pro(folder: Path, variant: str, config: str = STANDARD_10) -> Iterator[Question]:
    """The questions of one of MMMU-Pro's three forms."""
    paths = files_of(folder, f"**/{config}/test-*.parquet", named=f"MMMU-Pro's form {config!r}")
    name = {STANDARD_10: "mmmu-pro-standard-10", STANDARD_4: "mmmu-pro-standard-4", VISION: "mmmu-pro-vision"}[config]
    if config == VISION:
        for row in read_parquet(paths, ("id", "options", "answer", "subject")):
            options = _options(row)
            prompt = f"{PRO_LETTER} {PRO_FORM}" if variant == OFFICIAL else PRO_LETTER
            answer, facts = row.one_of(list(options), "answer"), {"subject": row.text("subject")}
            yield Question(name, row.text("id"), "", prompt, (row.picture(),), answer, options, facts)
        return
    for row in read_parquet(paths, ("id", "question", "options", "answer", "subject"), COLUMNS, FACTS[:2]):
        options, text = _options(row), row.text("question")
        between = "\n" if variant == OFFICIAL else "\n\n"
        prompt = f"{text}\n{listed(options)}{between}{PRO_LETTER}"
        facts = {"subject": row.text("subject"), **{fact: row.optional(fact) for fact in FACTS[:2]}}
        pictures, numbers = _pictures(row, text, options)
        answer = row.one_of(list(options), "answer")
        yield Question(name, row.text("id"), text, prompt, pictures, answer, options, facts, numbers=numbers)


def _prompt(text: str, options: dict[str, str], variant: str) -> str:
    """llava is what MMMU's own llava1.5.yaml asks. An open question of VLMEvalKit has made-up options, which these have
    not (EVALS.md 2.6): it is asked without."""
    if variant == VLMEVALKIT:
        return selected(text, options)
    if not options:
        return worded(f"{text}\n")
    if variant == LMMS_EVAL:
        return f"{text}\n{listed(options)}\n\n{LETTER}"
    return f"{text}\n\n" + "".join(f"({letter}) {option}\n" for letter, option in options.items()) + f"\n\n{LETTER}"


def _options(row: Record) -> dict[str, str]:
    """Options, which are a list written out as text."""
    options = row.values["options"]
    found = options if isinstance(options, list) else _list(row, "options", row.text("options"))
    if not 1 < len(found) <= len(LETTERS):
        raise row.wrong("options", f"a list of {len(found)}")
    return dict(zip(LETTERS, (str(text) for text in found), strict=False))


def _answers(row: Record) -> str | tuple[str, ...]:
    """The answer of an open question: three of the published ones are lists, written out as text."""
    text = row.text("answer")
    return tuple(_list(row, "answer", text)) if text.startswith("[") and text.endswith("]") else text


def _list(row: Record, field: str, text: str) -> list[str]:
    try:
        value = ast.literal_eval(text) if len(text) <= MAX_LITERAL else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str | int | float) for one in value) or not value:
        raise row.wrong(field, f"{text[:60]!r}, where a list is written out")
    return [str(one) for one in value]


def _subject(row: Record) -> str:
    """`Accounting` of `validation_Accounting_1`."""
    split, _, rest = row.text("id").partition("_")
    subject, _, number = rest.rpartition("_")
    if not split or not subject or not number.isdecimal():
        raise row.wrong("id", f"{row.text('id')[:60]!r}, where split, subject and number are read")
    return subject


def _pictures(
    row: ParquetRow, text: str, options: dict[str, str]
) -> tuple[tuple[ParquetPicture, ...], tuple[int, ...]]:
    """The pictures that question and options name, and their numbers; all there are where none is named."""
    there = {number: row.pictures[name] for number, name in enumerate(COLUMNS, 1) if row.pictures[name]}
    named = sorted({int(number) for part in (text, *options.values()) for number in MARK.findall(part)}) or list(there)
    for number in named:
        if number not in there:
            raise row.wrong(f"image_{number}", f"without a picture, which the question names as <image {number}>")
    if not named:
        raise row.wrong("image_1", "without a picture, as all others are")
    return tuple(picture for number in named for picture in there[number]), tuple(named)
