"""Which option an answer to a multiple-choice question of MMMU names, by the three parsers in use.

They agree on "(B)" and on letters between blanks and differ on the rest; where an answer names none, all three guess.
A parser here returns None for that, and `official_guesses` guesses as the official code does.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Parser = Literal["official", "lmms-eval", "mmmu-pro"]
SEED = 42  # of the official module, at its import
_MARKS = (",", ".", "!", "?", ";", ":", "'")
_WORDS_OF_A_SENTENCE = 5


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options by letter, from A on; MMMU goes up to I, MMMU-Pro to J."""
    return {chr(ord("A") + number): text for number, text in enumerate(options)}


def parse(response: str, options: Sequence[str], parser: Parser = "official") -> str | None:
    """The letter that `response` names, the last one of several; None where the parser guesses.

    official, MMMU `mmmu/utils/eval_utils.py::parse_multi_choice_response`: a letter in brackets, else a letter
    between blanks, else, over five words, an option's text. lmms-eval (0.7.2, `parse_mmmu_multi_choice_response`):
    instead of between blanks, a letter before a blank, else before a full stop. mmmu-pro
    (`mmmu-pro/evaluate.py`): as lmms-eval, but first a text after the last "Answer:" with exactly one letter in it.
    """
    by_letter = lettered(options)
    if parser == "mmmu-pro" and (letter := _after_answer(response, by_letter)):
        return letter
    text = response
    for mark in _MARKS:  # one kind after another, so "B.'" keeps its full stop
        text = text.strip(mark)
    text = f" {text} "
    forms = ("({})", " {} ") if parser == "official" else ("({})", "{} ", "{}.")
    for form in forms:
        if named := [letter for letter in by_letter if form.format(letter) in text]:
            # The latest place is looked for in brackets or between blanks whatever form was found, so letters
            # found otherwise stand at -1 alike and the first of them wins.
            place = form if form == "({})" else " {} "
            return max(named, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) > _WORDS_OF_A_SENTENCE:
        lower = text.lower()
        if named := [letter for letter, option in by_letter.items() if option.lower() in lower]:
            return max(named, key=lambda letter: lower.rfind(by_letter[letter].lower()))
    return None


def official_guesses(unparsed: Iterable[Sequence[str]]) -> list[str]:
    """The letters that the official code guesses for unparsed answers, given by their options in the order in which
    they are met: one generator, seeded once, so a guess depends on all before it."""
    generator = random.Random(SEED)
    return [generator.choice(list(lettered(options))) for options in unparsed]


def _after_answer(response: str, by_letter: Mapping[str, str]) -> str | None:
    _, found, after = response.rpartition("Answer:")
    named = [letter for letter in by_letter if letter in after.strip()] if found else []
    return named[0] if len(named) == 1 else None
