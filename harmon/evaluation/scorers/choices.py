"""Which option a free answer names, by the three rules that multiple-choice benchmarks are read with.

None means that the rule does not tell: VLMEvalKit and lmms-eval then ask a judge, and without one
(`exact_matching`) the answer is wrong.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence

NO_OPTION = "Z"  # an answer that refuses, or that says so: no option of any benchmark has this letter
_JUDGE_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_BLANK = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LAST_WORDS = 5

# What may stand around a letter in one word of the answer, in the order in which lmms-eval tries them.
_AROUND = (
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
    (":", ","),
    (":", "."),
    (":", ")"),
    (":", ")."),
)

_DECLARED = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_PHRASES = (
    *(f"{article}{what} is" for what in _DECLARED for article in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def present_options(row: Mapping[str, object], letters: str = string.ascii_uppercase) -> dict[str, str]:
    """The options of a table's row by letter: a missing one is None, NaN, "nan" or "None" in published tables."""
    return {letter: str(row[letter]) for letter in letters if letter in row and not _absent(row[letter])}


def infer_vlmevalkit(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that VLMEvalKit reads, NO_OPTION for a refusal, None where it would ask its judge.

    In this order: the only option letter among the words, if it is one of the last five; a letter A to D right
    after "answer is", in any case and even as the start of a word, so "the answer is a dog" reads A; the only
    option whose text the answer contains, unless the answer is over twice as long as all options together.

    VLMEvalKit (2026-08) `utils/matching_util.py::can_infer`; before pull request 1552 without the second rule,
    before 1175 without the limits.
    """
    if _JUDGE_FAILED not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return NO_OPTION
        if letter := _letter_among_words(answer, options):
            return letter
    return _only_text_within(answer, options, limited=True)


def infer_lmms_eval(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that lmms-eval reads for MMBench; E counts as a letter though MMBench has no such option.

    A letter must be a word by itself, or with the marks of one row of _AROUND. With "A" among more than three
    words no bare letter counts, since it may be the article. Then the only option text within the answer.

    lmms-eval `tasks/mmbench/mmbench_evals.py::MMBench_Evaluator.can_infer`.
    """
    if _JUDGE_FAILED not in answer:
        words = answer.split()
        if (letter := _only_word(words, "", "")) and not ("A" in words and len(words) > 3):
            return letter
        for before, after in _AROUND:
            if letter := _only_word(words, before, after):
                return letter
    return _only_text_within(answer, options, limited=False)


def extract_lmms_eval(answer: str, letters: Sequence[str] = "ABCDEFGH") -> str | None:
    """The letter that lmms-eval's extractor without a judge reads, None where the answer holds none of `letters`.

    Among all places where a letter stands in a known form the strongest form wins (first character, last
    character, after an answer phrase, "(A)", "A.", "A:", "A)", "A "), and within a form the last place. Only where
    no form matches does any capital count, so "There is a DOG" reads D.

    lmms-eval 0.7.2 `tasks/_task_utils/mcq_extract.py::extract_mcq_answer` (later versions give up when in doubt);
    its task `mmbench_en_dev_static` uses it.
    """
    bare = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        bare = bare.strip(mark)
    text = f" {bare} "
    places: list[tuple[int, int, str]] = []  # strength of the form, position, letter
    for letter in letters:
        places += _places(text, letter)
    if not places:
        places = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    if not places:
        return None
    best = max(strength_and_position[:2] for strength_and_position in places)
    return next(letter for strength, position, letter in places if (strength, position) == best)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ("nan", "None")


def _letter_among_words(answer: str, options: Mapping[str, str]) -> str | None:
    words = answer.translate(_TO_BLANK).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LAST_WORDS:
        return named[0]
    if not named and NO_OPTION in words:
        return NO_OPTION
    declared = _ANSWER_IS.search(answer)
    return declared[1].upper() if declared and declared[1].upper() in options else None


def _only_text_within(answer: str, options: Mapping[str, str], limited: bool) -> str | None:
    lower = answer.lower()
    if limited and len(lower) > 2 * sum(len(text) for text in options.values()):
        return None
    contained = [letter for letter, text in options.items() if text.lower() in lower]
    return contained[0] if len(contained) == 1 else None


def _only_word(words: Sequence[str], before: str, after: str) -> str | None:
    found = [letter for letter in "ABCDE" if before + letter + after in words]
    return found[0] if len(found) == 1 else None


def _places(text: str, letter: str) -> list[tuple[int, int, str]]:
    forms = ((6, f"({letter})"), (5, f"{letter}."), (4, f"{letter}:"), (3, f"{letter})"), (2, f"{letter} "))
    places = [(strength, text.rfind(form), letter) for strength, form in forms if form in text]
    lower = text.lower()
    for phrase in _PHRASES:
        start = lower.find(phrase)
        if start != -1 and (position := text.find(letter, start + len(phrase))) != -1:
            places.append((7, position, letter))
    bare = text.strip()
    if bare.startswith(letter) and not bare[1:2].isalpha():
        places.append((10, 0, letter))
    if bare.endswith(letter) and not bare[-2:-1].isalpha():
        places.append((9, len(text) - 1, letter))
    return places
