"""The answer normaliser of VQAv2 and TextVQA (EvalAI style), and the soft score over ten human answers."""

from collections.abc import Sequence

from harmon.evaluation.scorers.punctuation import without_punctuation
from pipelines.errors import HarmonError

HUMAN_ANSWERS = 10
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}

# Each may be written with one of its apostrophes left out. Forms in capitals (I'm, I've) are left away: the official
# table has them, but answers are in lower case when it is asked.
_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _APOSTROPHES.split()
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalise(answer: str) -> str:
    """`answer` in lower case, without articles and most punctuation, number words up to ten as digits, "'s" parted
    and contractions with their apostrophe.

    A mark next to a blank vanishes, elsewhere it becomes a blank; a full stop stays only before a digit.

    LLaVA `llava/eval/m4c_evaluator.py::EvalAIAnswerProcessor.__call__`.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in without_punctuation(text).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(given: str, humans: Sequence[str]) -> float:
    """How much credit `given` gets, 0 to 1: a third for each human who agrees, at most 1, in the mean over leaving out
    each of the ten humans in turn.

    LLaVA `m4c_evaluator.py::TextVQAAccuracyEvaluator`.

    Raises:
        HarmonError: not ten human answers.
    """
    if len(humans) != HUMAN_ANSWERS:
        raise HarmonError(f"{len(humans)} human answers to one question; the soft score is defined over ten.")
    answer = normalise(given)
    agree = sum(normalise(human) == answer for human in humans)
    left_in, left_out = min(1.0, agree / 3), min(1.0, max(agree - 1, 0) / 3)
    return (agree * left_out + (HUMAN_ANSWERS - agree) * left_in) / HUMAN_ANSWERS
