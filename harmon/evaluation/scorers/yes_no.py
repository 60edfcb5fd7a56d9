"""Yes or no in a free answer, as VLMEvalKit reads it for every benchmark of such questions."""

from typing import Literal

from harmon.evaluation.scorers.punctuation import without_punctuation

VlmEvalKitWord = Literal["Yes", "No", "Unknown"]


def read_vlmevalkit(text: str) -> VlmEvalKitWord:
    """Yes where "yes" is a word and "no" is not, No the other way round, else Unknown, which is wrong.

    VLMEvalKit `dataset/utils/yorn.py::YOrN_Extraction`.
    """
    words = without_punctuation(text.lower()).split()
    yes, no = "yes" in words, "no" in words
    if yes == no:
        return "Unknown"
    return "Yes" if yes else "No"
