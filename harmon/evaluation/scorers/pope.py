"""POPE: does the picture show a given object. Three splits of 3000 questions over COCO val2014.

Papers call different numbers "POPE": accuracy or F1, of one split, of the mean of three, or of all answers together,
after one of three ways to read an answer. `score` gives all of them for the way it is asked for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers.counts import POPE_OLD_RANDOM, POPE_SPLIT, POPE_SPLITS, require
from harmon.evaluation.scorers.yes_no import read_vlmevalkit
from pipelines.errors import HarmonError

Split = Literal["random", "popular", "adversarial"]
Label = Literal["yes", "no"]
Reading = Literal["official", "lmms-eval", "vlmevalkit"]


@dataclass(frozen=True)
class Answer:
    """One question of `split` whose right answer is `label`, and the model's answer as it came."""

    split: Split
    label: Label
    given: str


@dataclass(frozen=True)
class Score:
    """Shares of `n` answers, from 0 to 1; a share of nothing is None, where the official code would divide by zero.

    `yes_ratio` is the share of answers read as yes; as lmms-eval computes it, of right answers that are yes.
    `unparsed` answers were neither yes nor no; the official reading has none, it takes them for yes.
    """

    n: int
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    unparsed: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float


@dataclass(frozen=True)
class PopeScores:
    """Each split, all answers together (`overall`), and the mean over splits, which LLaVA reports of F1.

    The mean F1 is None where that of any split is.
    """

    reading: Reading
    splits: dict[str, Score]
    overall: Score
    mean_accuracy: float
    mean_f1: float | None

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_official(text: str) -> Label:
    """No where "No", "not" or "no" is a word of the first sentence, else yes: so are "NO", "No!", "Nope" and "".

    RUCAIBox/POPE `evaluate.py`; LLaVA `llava/eval/eval_pope.py::eval_pope`.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"}.intersection(words) else "yes"


def read_lmms_eval(text: str) -> str:
    """The answer that lmms-eval compares verbatim with "yes" and "no", so "Yes." is wrong.

    lmms-eval `tasks/pope/utils.py::pope_process_results`.
    """
    return text.lower().strip()


def read(text: str, reading: Reading) -> Label | None:
    """`text` as yes or no by `reading`, None where it is neither."""
    if reading == "official":
        return read_official(text)
    word = read_lmms_eval(text) if reading == "lmms-eval" else read_vlmevalkit(text).lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def score_answers(labels: Sequence[Label], given: Sequence[str], reading: Reading) -> Score:
    """The score of answers `given` where `labels` are right, of any number above 0.

    An unread answer is wrong, but counts as no false negative with lmms-eval, whose recall so grows.
    """
    if not labels or len(labels) != len(given):
        raise HarmonError(f"POPE: {len(given)} answers to {len(labels)} questions; give one answer to each question.")
    read_as = [read(text, reading) for text in given]
    pairs = Counter(zip(labels, read_as))
    tp, fp = pairs["yes", "yes"], pairs["no", "yes"]
    tn, fn = pairs["no", "no"], pairs["yes", "no"]
    if reading == "vlmevalkit":  # there, an unread answer is a negative one
        fn += pairs["yes", None]
    n = len(labels)
    precision, recall = _share(tp, tp + fp, reading), _share(tp, tp + fn, reading)
    return Score(
        n=n,
        true_positive=tp,
        false_positive=fp,
        true_negative=tn,
        false_negative=fn,
        unparsed=read_as.count(None),
        accuracy=(tp + tn) / n,
        precision=precision,
        recall=recall,
        f1=_f1(precision, recall, reading),
        yes_ratio=(labels.count("yes") if reading == "lmms-eval" else read_as.count("yes")) / n,
    )


def score(answers: Sequence[Answer], reading: Reading = "official", *, partial: bool = False) -> PopeScores:
    """POPE over its three splits.

    Raises:
        HarmonError: a split has not 3000 answers, half of them yes, and `partial` does not say so.
    """
    if unknown := sorted({answer.split for answer in answers} - set(POPE_SPLITS)):
        raise HarmonError(f"POPE has no split {unknown[0]!r}; its splits are {', '.join(POPE_SPLITS)}.")
    splits: dict[str, Score] = {}
    for split in POPE_SPLITS:
        of_split = [answer for answer in answers if answer.split == split]
        if len(of_split) == POPE_OLD_RANDOM and not partial:
            raise HarmonError(
                f"POPE {split} has {POPE_OLD_RANDOM} answers, as the old file of commit e3e3926 has; "
                f"use the file of {POPE_SPLIT}, since answers to one are misaligned with the labels of the other."
            )
        if partial and not of_split:
            continue
        require(f"POPE {split}", len(of_split), POPE_SPLIT, partial)
        if not partial:
            require(f"POPE {split}, questions to be answered yes", _yes(of_split), POPE_SPLIT // 2)
        splits[split] = _of(of_split, reading)
    if not splits:
        raise HarmonError("POPE: there is no answer to score; give at least one of a known split.")
    f1 = [one.f1 for one in splits.values() if one.f1 is not None]
    return PopeScores(
        reading=reading,
        splits=splits,
        overall=_of(answers, reading),
        mean_accuracy=sum(one.accuracy for one in splits.values()) / len(splits),
        mean_f1=sum(f1) / len(f1) if len(f1) == len(splits) else None,
    )


def _of(answers: Sequence[Answer], reading: Reading) -> Score:
    return score_answers([answer.label for answer in answers], [answer.given for answer in answers], reading)


def _yes(answers: Sequence[Answer]) -> int:
    return sum(answer.label == "yes" for answer in answers)


def _share(part: int, whole: int, reading: Reading) -> float | None:
    if whole:
        return part / whole
    return None if reading == "official" else 0.0


def _f1(precision: float | None, recall: float | None, reading: Reading) -> float | None:
    if precision is None or recall is None:
        return None
    if precision + recall:
        return 2 * precision * recall / (precision + recall)
    return None if reading == "official" else 0.0
