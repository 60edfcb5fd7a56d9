"""Named checks of a model's answer. The first one that fails is the reason why a row has no caption."""

import re
from collections.abc import Callable

from recaption.prompt import PLACE, Prompt

Check = Callable[[str, str, Prompt], bool]  # (answer, finish reason, prompt) -> the answer fails

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CHAT_MARKUP = re.compile(r"<\|\w+\|>")
_LONGEST_PHRASE = 8  # words of a phrase whose repeats are looked for; longer ones show as repeated sentences


def failed_checks(answer: str, finish_reason: str, prompt: Prompt) -> tuple[str, ...]:
    """Names of the checks that `answer` fails, in the order of `CHECKS`; empty when it passes."""
    return tuple(name for name, fails in CHECKS.items() if fails(answer, finish_reason, prompt))


def is_empty(answer: str, finish_reason: str, prompt: Prompt) -> bool:
    """No word in it."""
    return not _WORD.search(answer)


def leaks_prompt(answer: str, finish_reason: str, prompt: Prompt) -> bool:
    """Holds chat markup, or `leaked_words` words in a row of the instruction around the caption."""
    length = prompt.checks.leaked_words
    instruction: set[tuple[str, ...]] = set()
    for part in prompt.text.split(PLACE):
        instruction |= _runs(_words(part), length)
    return bool(_CHAT_MARKUP.search(answer)) or not instruction.isdisjoint(_runs(_words(answer), length))


def repeats_itself(answer: str, finish_reason: str, prompt: Prompt) -> bool:
    """The same words over `repeats_at_most` times in a row, or a sentence of three words or more twice."""
    sentences = [tuple(_words(s)) for s in _SENTENCE_END.split(answer) if len(_words(s)) >= 3]
    if len(set(sentences)) < len(sentences):
        return True
    words, most = _words(answer), prompt.checks.repeats_at_most
    return any(_longest_streak(words, size) >= most * size for size in range(1, _LONGEST_PHRASE + 1))


def is_over_long(answer: str, finish_reason: str, prompt: Prompt) -> bool:
    """More than `words_at_most` words, or cut off at the token limit."""
    return finish_reason == "length" or len(_words(answer)) > prompt.checks.words_at_most


CHECKS: dict[str, Check] = {
    "empty": is_empty,
    "prompt_leakage": leaks_prompt,
    "repeated_text": repeats_itself,
    "over_long": is_over_long,
}


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _longest_streak(words: list[str], size: int) -> int:
    """Longest run of words equal to the one `size` earlier: (n - 1) * size for a phrase n times in a row."""
    best = streak = 0
    for earlier, word in zip(words, words[size:], strict=False):
        streak = streak + 1 if earlier == word else 0
        best = max(best, streak)
    return best
