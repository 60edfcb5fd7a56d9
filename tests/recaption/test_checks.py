"""Each check finds what it is named for and leaves good captions alone; the rule says what follows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scenes import make_scene, short_caption
from recaption.checks import CHECKS, numbers, verdict
from recaption.prompt import PROMPTS, Checks, Prompt, load_prompt

PROMPT = load_prompt("rewrite-v1")
SHORT = load_prompt("caption-short-v1")


def failed(text: str, finish: str = "stop", caption: str | None = None, prompt: Prompt = PROMPT) -> list[str]:
    return list(verdict(text, finish, caption, prompt).failed)


def ruled(**rules: Any) -> Prompt:
    """rewrite-v1 with these rules and no others."""
    retry = {"retry": {"times": 1, "temperature": 0.7}} if "retry" in str(rules) else {}
    said = PROMPT.model_dump(exclude_none=True, exclude={"checks"})
    return Prompt.model_validate(said | {"checks": {"empty": "reject"} | rules} | retry)


@pytest.mark.parametrize(
    ("text", "finish", "names"),
    [
        ("", "stop", ["empty"]),
        (" \n …", "stop", ["empty"]),
        ("I'm sorry, but I cannot see the image.", "stop", ["refusal"]),
        ("I can’t help with that.", "stop", ["refusal"]),
        ("As an AI language model, I have no eyes.", "stop", ["refusal"]),
        ("Sorry, there is no description here.", "stop", ["refusal"]),
        ("Here is a detailed image description: a dog.", "stop", ["prompt_leakage", "boilerplate"]),
        ("A dog, concise, clear, and optimized for use with care.", "stop", ["prompt_leakage"]),
        ("A dog.<|im_end|>", "stop", ["prompt_leakage"]),
        ("A dog and a dog and a dog and a dog and a dog.", "stop", ["repeated_text"]),
        ("so so so so bright", "stop", ["repeated_text"]),
        ("A dog sits still. It rains. A dog sits still.", "stop", ["repeated_text"]),
        ("As an AI assistant I can't see it.", "stop", ["refusal"]),
        ("I am an AI and have no eyes.", "stop", ["refusal"]),
        ("A hologram portrayed as an AI assistant.", "stop", []),
        ("A woman dressed as an AI from a film, in neon light.", "stop", []),
        ("A dog sits in the", "length", ["cut_off"]),
        ("A dog sits.", "abort", ["cut_off"]),
        (" ".join(f"word{n}" for n in range(71)), "stop", ["over_long"]),
        ("the red the red the red the red the red", "length", ["repeated_text", "cut_off"]),
        ("Un chien brun dort dans la forêt sous les arbres.", "stop", ["wrong_language"]),
        ("Ein brauner Hund schläft unter den Bäumen und träumt.", "stop", ["wrong_language"]),
        ("一只狗在森林里睡觉。", "stop", ["wrong_language"]),
        ("A dog 在森林里睡觉。", "stop", ["wrong_language"]),
        ("Собака спит.", "stop", ["wrong_language"]),
        ("This image displays a dog.", "stop", ["boilerplate"]),
        ("In the picture, a dog sleeps.", "stop", ["boilerplate"]),
        ("Sure! A dog sleeps.", "stop", ["boilerplate"]),
        ("A misty, sunlit forest path; tall pines glow gold.", "stop", []),
        ("A very, very, very old oak. Fog.", "stop", []),
        ("A red dog and a red cat and a red hat and a red car.", "stop", []),
        ("A sorry sight: an unfortunate dog in the rain.", "stop", []),
        ("A sign reads “CAFÉ DE LA PAIX” under the awning.", "stop", []),
        ("Image shows on a screen.", "stop", []),
    ],
)
def test_an_answer_fails_exactly_these_checks(text: str, finish: str, names: list[str]) -> None:
    assert failed(text, finish) == names


@pytest.mark.parametrize(
    ("caption", "answer", "names"),
    [
        ("Two dogs and 3 cats.", "Two dogs and three cats.", []),
        ("Two dogs and 3 cats.", "2 dogs play.", ["lost_numbers"]),
        ("A dog.", "Four dogs.", ["invented_numbers"]),
        ("Two dogs.", "Three dogs.", ["lost_numbers", "invented_numbers"]),
        ("The sign reads 1,5.", "A sign: 1.5.", []),
        ("One of the dogs.", "A dog.", []),
        (None, "Seven dogs.", []),
    ],
)
def test_numbers_that_are_lost_or_invented_are_found(caption: str | None, answer: str, names: list[str]) -> None:
    assert failed(answer, "stop", caption, ruled(lost_numbers="flag", invented_numbers="flag")) == names


def test_a_caption_in_another_language_passes_where_that_is_asked_for() -> None:
    chinese, french = (ruled(wrong_language={"action": "reject", "language": lang}) for lang in ("zh", "fr"))
    assert failed("一只名叫 Rex 的狗在森林里睡觉。", prompt=chinese) == []
    assert failed("A dog sleeps in the forest.", prompt=chinese) == ["wrong_language"]
    assert failed("Un chien brun dort dans la forêt sous les arbres.", prompt=french) == []


@pytest.mark.parametrize("version", sorted(path.stem for path in PROMPTS.glob("*.yaml")))
def test_a_text_that_was_cut_off_passes_no_prompt(version: str) -> None:
    assert verdict("A dog sits in the", "length", None, load_prompt(version)).reason == "cut_off"
    assert verdict("A dog sits in the", "length", None, ruled()).reason == "cut_off"  # one that does not name it


def test_captions_of_scenes_pass() -> None:
    texts = [short_caption(make_scene(3, index)) for index in range(500)]
    assert [text for text in texts if failed(text)] == []


def test_the_rule_says_what_follows() -> None:
    reject, retry, flag = (ruled(refusal=action) for action in ("reject", "retry", "flag"))
    said = [verdict("I am sorry.", "stop", None, prompt) for prompt in (reject, retry, flag)]
    assert [(one.reason, one.ask_again) for one in said] == [("refusal", False), ("refusal", True), (None, False)]
    assert {one.failed for one in said} == {("refusal",)}
    both = ruled(refusal="retry", over_long={"action": "reject", "words": 2})
    assert not verdict("I am sorry.", "stop", None, both).ask_again  # no seed mends what is rejected for good


def test_every_rule_has_its_check() -> None:
    assert list(CHECKS) == list(Checks.model_fields)


@given(st.text(max_size=300), st.sampled_from(["stop", "length", ""]), st.none() | st.text(max_size=50))
def test_any_text_gets_a_verdict_in_the_order_of_the_checks(text: str, finish: str, caption: str | None) -> None:
    for prompt in (PROMPT, SHORT, ruled(lost_numbers="flag", wrong_language={"action": "flag", "language": "zh"})):
        names = failed(text, finish, caption, prompt)
        assert names == [name for name in CHECKS if name in names]


@given(st.lists(st.sampled_from(["red", "dog", "on", "a"]), min_size=1, max_size=8), st.integers(1, 6))
def test_the_same_words_more_often_in_a_row_than_allowed_are_found(words: list[str], times: int) -> None:
    names = failed(" ".join(words * times))
    if times > PROMPT.rules["repeated_text"].model_dump()["times"]:
        assert "repeated_text" in names


@given(st.integers(0, 10**6))
def test_a_number_is_the_same_in_any_company(number: int) -> None:
    assert numbers(f"the {number} dogs.") == numbers(f"({number:03d})") == {str(number)}
