"""Each check finds what it is named for and leaves good captions alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scenes import make_scene, short_caption
from recaption.checks import CHECKS, failed_checks
from recaption.prompt import load_prompt

PROMPT = load_prompt("rewrite-v1")


@pytest.mark.parametrize(
    ("text", "finish", "failed"),
    [
        ("", "stop", ["empty"]),
        (" \n …", "stop", ["empty"]),
        ("Here is a detailed image description: a dog.", "stop", ["prompt_leakage"]),
        ("A dog, concise, clear, and optimized for use with care.", "stop", ["prompt_leakage"]),
        ("A dog.<|im_end|>", "stop", ["prompt_leakage"]),
        ("A dog and a dog and a dog and a dog and a dog.", "stop", ["repeated_text"]),
        ("so so so so bright", "stop", ["repeated_text"]),
        ("A dog sits still. It rains. A dog sits still.", "stop", ["repeated_text"]),
        ("A dog sits in the", "length", ["over_long"]),
        (" ".join(f"word{n}" for n in range(71)), "stop", ["over_long"]),
        ("the red the red the red the red the red", "length", ["repeated_text", "over_long"]),
        ("A misty, sunlit forest path; tall pines glow gold.", "stop", []),
        ("A very, very, very old oak. Fog.", "stop", []),
        ("A red dog and a red cat and a red hat and a red car.", "stop", []),
        ("Un chien détaillé dans la forêt.", "stop", []),
    ],
)
def test_an_answer_fails_exactly_these_checks(text: str, finish: str, failed: list[str]) -> None:
    assert list(failed_checks(text, finish, PROMPT)) == failed


def test_captions_of_scenes_pass() -> None:
    texts = [short_caption(make_scene(3, index)) for index in range(500)]
    assert [text for text in texts if failed_checks(text, "stop", PROMPT)] == []


@given(st.text(max_size=300), st.sampled_from(["stop", "length", ""]))
def test_any_text_gets_a_verdict_in_the_order_of_the_checks(text: str, finish: str) -> None:
    failed = failed_checks(text, finish, PROMPT)
    assert list(failed) == [name for name in CHECKS if name in failed]


@given(st.lists(st.sampled_from(["red", "dog", "on", "a"]), min_size=1, max_size=8), st.integers(1, 6))
def test_the_same_words_more_often_in_a_row_than_allowed_are_found(words: list[str], times: int) -> None:
    failed = failed_checks(" ".join(words * times), "stop", PROMPT)
    if times > PROMPT.checks.repeats_at_most:
        assert "repeated_text" in failed
