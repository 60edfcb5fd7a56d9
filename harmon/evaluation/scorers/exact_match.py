"""Equality of short texts as lmms-eval measures it, for the tasks that name the metric `exact_match`."""

import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(given: str, gold: str) -> bool:
    """Equal without case and ASCII punctuation; blanks count, so " yes" is not "yes" and "tshirt" is "t-shirt".

    lmms-eval `api/metrics.py::exact_match_hf_evaluate(ignore_case=True, ignore_punctuation=True)`.
    """
    return given.lower().translate(_NO_PUNCTUATION) == gold.lower().translate(_NO_PUNCTUATION)
