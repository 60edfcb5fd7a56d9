"""The removal of punctuation that answers to VQA are compared without, which VLMEvalKit uses for yes and no too."""

import re

_REMOVED = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official calls pass re.UNICODE, whose value is 32, where a count is expected


def without_punctuation(text: str) -> str:
    """`text` without most punctuation: next to a blank a mark vanishes, elsewhere it becomes a blank, and a comma
    within a number makes every mark vanish. A full stop vanishes unless a digit follows; apostrophes and colons stay.

    VLMEvalKit `smp/vlm.py::process_punctuation`; LLaVA `m4c_evaluator.py::EvalAIAnswerProcessor.process_punctuation`,
    where commas are gone before.
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _REMOVED:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank or number else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)
