"""Whether an answer to an open question of MMMU is right: key phrases and numbers of the answer against the gold.

MMMU `mmmu/utils/eval_utils.py`, its functions named below.
"""

import re
from collections.abc import Sequence

Value = str | float

_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")


def normalised(text: str) -> list[Value]:
    """A number rounded to two places where `text` is one (commas dropped), else the text in lower case; a single
    character as two, with a blank before and after, so that it does not match within words.

    `normalize_str`.
    """
    stripped = text.strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lower = stripped.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def numbers(text: str) -> list[str]:
    """Numbers in `text` as written: with commas, then scientific, then plain; one place may give several.

    `extract_numbers`.
    """
    return [*_WITH_COMMAS.findall(text), *_SCIENTIFIC.findall(text), *_PLAIN.findall(text)]


def parse(response: str) -> list[Value]:
    """What `response` may answer: its key phrases and the numbers in them, normalised, each once.

    `parse_open_response`, which returns them as a set.
    """
    phrases = _key_phrases(response)
    candidates = [*phrases, *(number for phrase in phrases for number in numbers(phrase))]
    return list(dict.fromkeys(value for candidate in candidates for value in normalised(candidate)))


def is_right(parsed: Sequence[Value], gold: str | Sequence[str]) -> bool:
    """Whether any candidate has the gold within (texts) or equals it (numbers), or any of several golds.

    `eval_open`.
    """
    golds = [value for one in ([gold] if isinstance(gold, str) else gold) for value in normalised(one)]
    texts = [value for value in golds if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in golds for value in parsed)


def _key_phrases(response: str) -> list[str]:
    """The shortest tail after an indicator in each line, "=" being one in the last line; all of it where none is.

    The official code means to part sentences too, but looks for a capital after lowering the case, so only line
    breaks part.
    """
    text = response.strip().strip(".").lower()
    lines = text.split("\n")
    phrases = []
    for number, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in line:
                tail = line.rsplit(indicator, 1)[1].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            phrases.append(shortest)
    return phrases or [text]
