"""Named checks of a model's answer; the prompt file says what becomes of an answer that fails one."""

import functools
import operator
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recaption.prompt import PLACE, Language, Leakage, Length, Prompt, Repeats

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CHAT_MARKUP = re.compile(r"<\|\w+\|>")
_LONGEST_PHRASE = 8  # words of a phrase whose repeats are looked for; longer ones show as repeated sentences
_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]?m|i am)\s+(?:very |really |so )?(?:sorry|afraid|unable|not able)"
    r"|(?:sorry|apologies|unfortunately)\b"
    r"|i\s+(?:cannot|can['’]?t|can not|do not|don['’]?t)\s+(?:assist|help|see|view|provide|describe|rewrite|fulfil))"
    r"|^\W*i(?:['’]?m| am)\s+(?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?]{0,30}?[,\s]i(?:['’]\w+)?\s",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^\W*(?:(?:this|the) (?:image|picture|photo|photograph|illustration|scene|painting)\s+"
    r"(?:displays?|shows?|depicts?|features?|captures?|presents?|portrays?|contains?|illustrates?|is)\b"
    r"|in (?:this|the) (?:image|picture|photo|photograph|scene)\b|(?:sure|certainly|of course)[,!.:]"
    r"|here(?: is|['’]s) (?:a|an|the|your) )",
    re.IGNORECASE,
)
_COUNTED = (  # "one" is left out: it is a pronoun as often as a number
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_NUMBER_WORDS = dict(zip(_COUNTED.split(" "), map(str, range(2, 21)), strict=True))
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# The commonest words of each language that the others do not have.
_COMMON = {
    "en": "the and with of is are this that from has its an by under over while their",
    "de": "der das und mit ist ein eine auf dem den von sich unter über ihre wird",
    "fr": "le les et avec est une des dans sur aux qui cette sont au sous ses",
    "es": "el los y con es una del en las sobre por que esta sus está bajo",
    "it": "il gli e con è una del nella sono di che sul questa suoi delle lo",
    "pt": "o os e com é uma do no na da em sobre que seus está umas",
    "nl": "het een en met van op zijn de aan deze onder door haar wordt naar bij",
}
_COMMON_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_LANGUAGES_OF = {
    word: tuple(language for language, words in _COMMON_WORDS.items() if word in words)
    for word in frozenset().union(*_COMMON_WORDS.values())
}
_FOREIGN_LETTERS = {"LATIN": 0.2, "CJK": 0.5}  # most of them: names stay Latin in Chinese, and weigh more there
_WORDS_TO_TELL = 6  # fewer words do not tell one European language from another


@dataclass(frozen=True)
class Verdict:
    """What the checks say of one answer."""

    failed: tuple[str, ...]
    """Names of the checks that it fails, in the order of `recaption.prompt.Checks`."""
    reason: str | None
    """The first failed check that costs the row its caption; None: the caption stands."""
    ask_again: bool
    """Whether another seed may mend it: a `retry` failed and no `reject` did."""


def verdict(answer: str, finish_reason: str, caption: str | None, prompt: Prompt) -> Verdict:
    """Check `answer` (stripped) as the prompt's rules say.

    `finish_reason`: "stop" or "length"; `caption`: what was rewritten, None where an image was described.
    """
    given = Given(answer, finish_reason, caption, prompt)
    rules = prompt.rules
    failed = tuple(name for name, rule in rules.items() if CHECKS[name](given, rule))
    actions = {name: rules[name].action for name in failed}
    reason = next((name for name, action in actions.items() if action != "flag"), None)
    return Verdict(failed, reason, "retry" in actions.values() and "reject" not in actions.values())


@dataclass(frozen=True)
class Given:
    """What a check looks at."""

    answer: str
    finish_reason: str
    caption: str | None
    prompt: Prompt

    @functools.cached_property
    def words(self) -> list[str]:
        """Of the answer, in lower case."""
        return _words(self.answer)


Check = Callable[[Given, Any], bool]  # (what it looks at, the check's own rule) -> the answer fails


def is_empty(given: Given, rule: object) -> bool:
    """No word in it."""
    return not _WORD.search(given.answer)


def refuses(given: Given, rule: object) -> bool:
    """The model says that it cannot, or speaks of itself as one."""
    return bool(_REFUSAL.search(given.answer))


def leaks_prompt(given: Given, rule: Leakage) -> bool:
    """Holds chat markup, or `words` words in a row of the instruction around the caption."""
    return bool(_CHAT_MARKUP.search(given.answer)) or not _instruction(given.prompt.text, rule.words).isdisjoint(
        _runs(given.words, rule.words)
    )


def repeats_itself(given: Given, rule: Repeats) -> bool:
    """The same words over `times` times in a row, or a sentence of three words or more twice."""
    sentences = [tuple(_words(s)) for s in _SENTENCE_END.split(given.answer)]
    sentences = [sentence for sentence in sentences if len(sentence) >= 3]
    if len(set(sentences)) < len(sentences):
        return True
    words = given.words
    return any(
        sum(map(operator.eq, words, words[size:])) >= rule.times * size  # cheap, and hardly ever enough
        and _longest_streak(words, size) >= rule.times * size
        for size in range(1, _LONGEST_PHRASE + 1)
    )


def is_in_wrong_language(given: Given, rule: Language) -> bool:
    """Too many letters of another script, or more of its commonest words are another language's."""
    script = "CJK" if rule.language == "zh" else "LATIN"
    if script == "CJK" or not given.answer.isascii():  # what is ASCII is Latin
        letters = [letter for letter in given.answer if letter.isalpha()]
        foreign = sum(not unicodedata.name(letter, "").startswith(script) for letter in letters)
        if foreign > len(letters) * _FOREIGN_LETTERS[script]:
            return True
    words = given.words
    if rule.language == "zh" or len(words) < _WORDS_TO_TELL:
        return False
    counts = dict.fromkeys(_COMMON_WORDS, 0)
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            counts[language] += 1
    best = max(counts, key=lambda language: counts[language])
    return best != rule.language and counts[best] >= 2 and counts[best] > counts[rule.language]


def is_cut_off(given: Given, rule: object) -> bool:
    """The model did not end it: the token limit did."""
    return given.finish_reason != "stop"


def is_over_long(given: Given, rule: Length) -> bool:
    """More than `words` words."""
    return len(given.words) > rule.words


def is_boilerplate(given: Given, rule: object) -> bool:
    """Begins as a remark about the image ("This image displays ...") or about the answer itself."""
    return bool(_BOILERPLATE.search(given.answer))


def loses_numbers(given: Given, rule: object) -> bool:
    """A number of the caption is not in the answer."""
    return given.caption is not None and not numbers(given.caption) <= numbers(given.answer)


def invents_numbers(given: Given, rule: object) -> bool:
    """A number of the answer is not in the caption."""
    if given.caption is None or not (named := numbers(given.answer)):
        return False
    return not named <= numbers(given.caption)


CHECKS: dict[str, Check] = {
    "empty": is_empty,
    "refusal": refuses,
    "prompt_leakage": leaks_prompt,
    "repeated_text": repeats_itself,
    "wrong_language": is_in_wrong_language,
    "cut_off": is_cut_off,
    "over_long": is_over_long,
    "boilerplate": is_boilerplate,
    "lost_numbers": loses_numbers,
    "invented_numbers": invents_numbers,
}


def numbers(text: str) -> frozenset[str]:
    """The numbers in a text, in digits: 2 for "two", "2" and "02"; 3.5 for "3.5" and "3,5"."""
    digits = {number.replace(",", ".").lstrip("0") or "0" for number in _NUMBER.findall(text)}
    return frozenset(digits | {_NUMBER_WORDS[word] for word in _NUMBER_WORDS.keys() & set(_words(text))})


def _words(text: str) -> list[str]:
    if text.isascii():  # elsewhere a letter may become two
        return _WORD.findall(text.lower())
    return [word.lower() for word in _WORD.findall(text)]


@functools.cache
def _instruction(text: str, length: int) -> frozenset[tuple[str, ...]]:
    """Every run of `length` words of the prompt around its caption."""
    return frozenset().union(*(_runs(_words(part), length) for part in text.split(PLACE)))


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _longest_streak(words: list[str], size: int) -> int:
    """Longest run of words equal to the one `size` earlier: (n - 1) * size for a phrase n times in a row."""
    best = streak = 0
    for earlier, word in zip(words, words[size:], strict=False):
        streak = streak + 1 if earlier == word else 0
        best = max(best, streak)
    return best
