"""How questions are worded: the variants that papers and evaluation kits use, which differ by several points.

llava       as LLaVA-1.5's scripts ask (also the first choice of most papers)
lmms-eval   as lmms-eval 0.7's tasks ask
vlmevalkit  as VLMEvalKit's datasets ask where a model brings no prompt of its own
official    as the benchmark's own code asks, where that is another way

Checked against those repositories' sources at the snapshots of docs/benchmarks-data.md.
"""

from collections.abc import Mapping

LLAVA, LMMS_EVAL, VLMEVALKIT, OFFICIAL = "llava", "lmms-eval", "vlmevalkit", "official"
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above. \n"  # the space before the line's end is theirs


def worded(question: str) -> str:
    """A question to be answered in a word."""
    return f"{question}\n{WORD}"


def listed(options: Mapping[str, str]) -> str:
    """Options a line each: `A. text`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def lettered(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """A question with options as LLaVA asks it."""
    return "\n".join([*([hint] if hint else []), question, listed(options), LETTER])


def selected(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """A question with options, or an open one, as VLMEvalKit asks it."""
    lines = f"Hint: {hint}\n" if hint else ""
    lines += f"Question: {question}\n"
    return lines + (f"Options:\n{listed(options)}\n{SELECT}" if options else "")


def several(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """A question of MMBench as lmms-eval asks it, with an empty line before what to do."""
    asked = f"{hint} {question}" if hint else question
    return f"{asked} There are several options:\n{listed(options)}\n\n{LETTER}"
