"""MMMU (validation, 30 subjects of 30 questions) and MMMU-Pro: college-level questions with choices or open.

The share of right answers over all questions equals the mean over subjects, since every subject has as many. How an
answer is read moves a small model by several points, so `unparsed` and the score without guesses stand beside it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers import mmmu_choice, mmmu_open
from harmon.evaluation.scorers.choices import infer_vlmevalkit
from harmon.evaluation.scorers.counts import (
    MMMU_A_SUBJECT,
    MMMU_CHOICE,
    MMMU_OPEN,
    MMMU_PRO_SETTING,
    MMMU_SUBJECTS,
    require,
)
from pipelines.errors import HarmonError

Parser = Literal["official", "lmms-eval", "mmmu-pro", "vlmevalkit"]
QuestionType = Literal["multiple-choice", "open"]
Setting = Literal["standard-10", "standard-4", "vision"]

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}


@dataclass(frozen=True)
class Answer:
    """One question: its id ("validation_Accounting_1"), its type, its options (none where it is open), its gold
    (a letter; texts where it is open, mostly one) and the model's answer as it came."""

    id: str
    question_type: QuestionType
    options: tuple[str, ...]
    gold: str | tuple[str, ...]
    given: str

    @property
    def subject(self) -> str:
        """The part of the id between its first and its last mark."""
        parts = self.id.split("_")
        if len(parts) < 3:
            raise HarmonError(f"MMMU id {self.id!r} names no subject; ids look like validation_Accounting_1.")
        return "_".join(parts[1:-1])


@dataclass(frozen=True)
class SubjectScore:
    """Share of right answers, from 0 to 1, of `n`."""

    accuracy: float
    n: int


@dataclass(frozen=True)
class MmmuScores:
    """Shares of right answers from 0 to 1. Of `unparsed` choices the official parsers guess a letter, seeded once;
    `accuracy_without_guesses` takes them for wrong."""

    parser: Parser
    n: int
    accuracy: float
    accuracy_without_guesses: float
    mean_of_subjects: float
    unparsed: int
    subjects: dict[str, SubjectScore]
    domains: dict[str, SubjectScore]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def right_choice(parsed: str | None, gold: str | Sequence[str]) -> bool:
    """Whether the letter is the gold one, or among several golds.

    `eval_multi_choice`.
    """
    return parsed == gold if isinstance(gold, str) else parsed in gold


def over_subjects(right: Sequence[tuple[str, bool]]) -> dict[str, SubjectScore]:
    """Score of each subject of (subject, whether right) pairs.

    `evaluate` of MMMU's eval_utils, once a subject.
    """
    of_subject: dict[str, list[bool]] = defaultdict(list)
    for subject, is_right in right:
        of_subject[subject].append(is_right)
    return {subject: SubjectScore(sum(some) / len(some), len(some)) for subject, some in of_subject.items()}


def instance_level(subjects: Sequence[SubjectScore]) -> float:
    """Share of right answers over all instances of `subjects`, 0 where there are none.

    `calculate_ins_level_acc`.
    """
    n = sum(subject.n for subject in subjects)
    return sum(subject.accuracy * subject.n for subject in subjects) / n if n else 0.0


def score(answers: Sequence[Answer], parser: Parser = "official", *, partial: bool = False) -> MmmuScores:
    """MMMU validation over its 900 questions, in the order given, on which guesses depend.

    "vlmevalkit" reads choices as `infer_vlmevalkit` does, without guesses, and turns open questions into choices
    between the gold and "Other Answers", which favours small models (`MMMU_preproc`).

    Raises:
        HarmonError: not 30 questions in each of 30 subjects, and `partial` does not say so.
    """
    types = Counter(answer.question_type for answer in answers)
    require("MMMU validation", len(answers), MMMU_CHOICE + MMMU_OPEN, partial)
    if not partial:
        require("MMMU validation, multiple-choice questions", types["multiple-choice"], MMMU_CHOICE)
        subjects = Counter(answer.subject for answer in answers)
        require("MMMU validation, subjects", len(subjects), MMMU_SUBJECTS)
        for subject, number in subjects.items():
            require(f"MMMU validation, {subject}", number, MMMU_A_SUBJECT)
    return _score(answers, parser)


def score_pro(answers: Sequence[Answer], setting: Setting, *, partial: bool = False) -> MmmuScores:
    """MMMU-Pro over the 1730 choices of one setting, with its own parser.

    Raises:
        HarmonError: another number of questions, and `partial` does not say so, or an open question.
    """
    require(f"MMMU-Pro {setting}", len(answers), MMMU_PRO_SETTING, partial)
    if unfit := [answer.id for answer in answers if answer.question_type != "multiple-choice"]:
        raise HarmonError(f"MMMU-Pro has choices only, but {unfit[0]} is open; read it as its published file says.")
    return _score(answers, "mmmu-pro")


@dataclass(frozen=True)
class Marked:
    """What was read of one answer (None: nothing, or it is open), and whether it is right: as `parser` counts, which
    may have guessed, and without guesses."""

    parsed: str | None
    right: bool
    right_unguessed: bool
    unparsed: bool


def marked(answers: Sequence[Answer], parser: Parser) -> list[Marked]:
    """Every answer by itself, in the order given, on which guesses depend."""
    choices = {number: answer for number, answer in enumerate(answers) if answer.question_type == "multiple-choice"}
    letters = {number: _letter(answer, parser) for number, answer in choices.items()}
    unparsed = [number for number, letter in letters.items() if letter is None]
    unguessed = [
        right_choice(letters[number], answer.gold) if number in letters else _right_open(answer, parser)
        for number, answer in enumerate(answers)
    ]
    right = list(unguessed)
    if parser != "vlmevalkit":
        guesses = mmmu_choice.official_guesses([choices[number].options for number in unparsed])
        for number, letter in zip(unparsed, guesses):
            right[number] = right_choice(letter, choices[number].gold)
    missed = set(unparsed)
    return [
        Marked(letters.get(number), right[number], unguessed[number], number in missed)
        for number in range(len(answers))
    ]


def _score(answers: Sequence[Answer], parser: Parser) -> MmmuScores:
    every = marked(answers, parser)
    subjects = over_subjects([(answer.subject, one.right) for answer, one in zip(answers, every)])
    return MmmuScores(
        parser=parser,
        n=len(answers),
        accuracy=instance_level(list(subjects.values())),
        accuracy_without_guesses=sum(one.right_unguessed for one in every) / len(every),
        mean_of_subjects=sum(subject.accuracy for subject in subjects.values()) / len(subjects),
        unparsed=sum(one.unparsed for one in every),
        subjects=subjects,
        domains=_domains(subjects),
    )


def _letter(answer: Answer, parser: Parser) -> str | None:
    if parser == "vlmevalkit":
        return infer_vlmevalkit(answer.given, mmmu_choice.lettered(answer.options))
    return mmmu_choice.parse(answer.given, answer.options, parser)


def _right_open(answer: Answer, parser: Parser) -> bool:
    if parser == "vlmevalkit":
        gold = answer.gold if isinstance(answer.gold, str) else str(list(answer.gold))
        return infer_vlmevalkit(answer.given, {"A": gold, "B": "Other Answers"}) == "A"
    return mmmu_open.is_right(mmmu_open.parse(answer.given), answer.gold)


def _domains(subjects: dict[str, SubjectScore]) -> dict[str, SubjectScore]:
    domains: dict[str, SubjectScore] = {}
    for domain, names in DOMAINS.items():
        if some := [subjects[name] for name in names if name in subjects]:
            domains[domain] = SubjectScore(instance_level(some), sum(subject.n for subject in some))
    return domains
