"""Scenes: the texts agree with the picture, everything is a pure function, and held-out pairs stay held
out."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipelines.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    class_name,
    conversation,
    dense_caption,
    make_scene,
    names_every_object,
    questions,
    render,
    short_caption,
    text_dialogue,
)
from pipelines.scenes.render import REACH
from pipelines.scenes.scene import PLACES

settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")

seeds = st.integers(0, 2**40)
indices = st.integers(0, 10**7)
trained_splits = st.sampled_from(["train", "unseen"])
any_number = st.sampled_from([None, 1, 2, 3, 4])
scenes = st.builds(make_scene, seeds, indices, any_number, trained_splits) | st.builds(
    make_scene, seeds, indices, st.sampled_from([None, 1]), st.just("held_out")
)
NUMBERS = ["none", "one", "two", "three", "four"]


def nearest_colour(value: np.ndarray) -> str:
    everything = COLOURS | BACKGROUNDS
    return min(everything, key=lambda name: float(np.square(value - np.array(everything[name])).sum()))


@given(scenes)
def test_each_object_has_its_colour_at_its_centre(scene: Scene) -> None:
    picture = render(replace(scene, finish="clean"), 128).astype(float)
    for item in scene.objects:
        assert nearest_colour(picture[int(item.y * 128), int(item.x * 128)]) == item.colour


@given(scenes, st.sampled_from([64, 96, 128, 256]))
@settings(max_examples=40)
def test_as_many_islands_of_colour_as_objects(scene: Scene, side: int) -> None:
    """What differs from the background falls into one connected piece for each object."""
    picture = render(replace(scene, finish="clean", texture="plain"), side).astype(int)
    different = np.abs(picture - np.array(BACKGROUNDS[scene.background])).sum(-1) > 0
    assert ndimage.label(different)[1] == len(scene.objects)


@given(scenes)
def test_objects_lie_inside_and_apart(scene: Scene) -> None:
    for number, a in enumerate(scene.objects):
        reach = REACH[a.shape] * a.radius
        assert reach < min(a.x, a.y, 1 - a.x, 1 - a.y)
        for b in scene.objects[:number]:
            assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
    assert len({item.pair for item in scene.objects}) == len(scene.objects)


@given(scenes)
def test_the_corners_show_the_background_at_its_own_brightness(scene: Scene) -> None:
    picture = render(replace(scene, finish="clean"), 128)
    assert nearest_colour(picture[:8, :8].reshape(-1, 3).max(0).astype(float)) == scene.background


@given(seeds, indices, any_number, trained_splits)
def test_everything_is_a_function_of_seed_and_index(seed: int, index: int, number: int | None, split) -> None:
    first, again = (make_scene(seed, index, number, split) for _ in range(2))
    assert first == again
    assert (render(first, 64) == render(again, 64)).all()
    for words in (dense_caption, short_caption, class_name, questions, conversation, text_dialogue):
        assert words(first) == words(again)


def test_a_scene_is_the_same_on_every_machine() -> None:
    scene = make_scene(0, 0)
    assert dense_caption(scene) == (
        "The scene is made of two shapes. At the left side rests a medium cyan triangle. On the right appears a "
        "medium orange cross. Everything is set on a lined grey surface."
    )
    assert short_caption(scene) == (
        "A cyan triangle at the left and an orange cross at the right on a striped grey background."
    )


@given(seeds, indices, any_number, trained_splits)
def test_no_held_out_pair_in_a_trained_picture_or_text(seed: int, index: int, number, split) -> None:
    scene = make_scene(seed, index, number, split)
    assert not HELD_OUT_PAIRS & {item.pair for item in scene.objects}
    texts = [dense_caption(scene), short_caption(scene), class_name(scene)]
    texts += [asked.question for asked in (*questions(scene), *conversation(scene))] + [
        turn.text for turn in text_dialogue(scene)
    ]
    for colour, shape in HELD_OUT_PAIRS:
        assert not any(f"{colour} {shape}" in text.lower() for text in texts)


@given(seeds, indices)
def test_held_out_scenes_are_one_clean_object_of_a_held_out_pair(seed: int, index: int) -> None:
    scene = make_scene(seed, index, split="held_out")
    assert [item.pair in HELD_OUT_PAIRS for item in scene.objects] == [True]
    assert scene.finish == "clean"


def test_held_out_pairs_are_one_for_each_colour_and_two_for_each_shape() -> None:
    assert Counter(colour for colour, _ in HELD_OUT_PAIRS) == dict.fromkeys(COLOURS, 1)
    assert Counter(shape for _, shape in HELD_OUT_PAIRS) == dict.fromkeys(SHAPES, 2)


@given(seeds, indices, st.sampled_from([0, 5, -1]))
def test_other_numbers_of_objects_are_refused(seed: int, index: int, objects: int) -> None:
    with pytest.raises(ValueError, match="use 1 to 4"):
        make_scene(seed, index, objects)
    with pytest.raises(ValueError, match="1 for held_out"):
        make_scene(seed, index, 2, "held_out")


@given(scenes)
def test_both_captions_name_every_object_and_nothing_else(scene: Scene) -> None:
    dense, short = dense_caption(scene), short_caption(scene)
    assert names_every_object(scene, short)
    if scene.texture == "plain":  # the dense caption has synonyms of textures, and "plain" is in none of them
        assert names_every_object(scene, dense)
    pair = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    assert re.findall(pair, dense) == re.findall(pair, short.lower())
    assert [scene.background in text for text in (dense, short)] in ([True, True], [False, False])
    assert 2 <= dense.count(".") <= 5 and 15 <= len(re.findall(r"\w+|[^\w\s]", dense)) <= 75


@given(scenes)
def test_the_check_refuses_a_wrong_missing_or_invented_object(scene: Scene) -> None:
    text = short_caption(scene)
    colour, shape = scene.objects[0].pair
    wrong = next(c for c in COLOURS if c not in {item.colour for item in scene.objects})
    assert not names_every_object(scene, text.lower().replace(f"{colour} {shape}", f"{wrong} {shape}"))
    assert not names_every_object(scene, text.lower().replace(f"{colour} {shape}", shape))
    assert not names_every_object(scene, f"{text} And a {wrong} {shape}.")
    assert not names_every_object(scene, f"{text} It is {wrong}.")
    assert not names_every_object(scene, "")


@given(scenes)
def test_places_in_the_dense_caption_agree_with_the_objects(scene: Scene) -> None:
    dense = dense_caption(scene).lower()
    clauses = re.split(r"\.|, and |, while |; further, | and ", dense)
    for item in scene.objects:
        (clause,) = [c for c in clauses if f"{item.colour} {item.shape}" in c]
        said = {word for word in ("left", "right") if word in clause}
        assert said == ({"left"} if item.x < 0.4 else {"right"} if item.x > 0.6 else set())
        above = {word for word in ("top", "upper") if word in clause}
        below = {word for word in ("bottom", "lower") if word in clause}
        assert bool(above) == (item.y < 0.4) and bool(below) == (item.y > 0.6)


@given(scenes)
def test_the_short_caption_says_where_each_of_several_objects_is(scene: Scene) -> None:
    told = re.findall(
        r"(\w+ \w+) at the ((?:top |bottom )?(?:left|right)|top|bottom|middle)", short_caption(scene).lower()
    )
    several = scene.objects if len(scene.objects) > 1 else ()
    assert dict(told) == {" ".join(item.pair): item.place for item in several}
    assert {item.place for item in scene.objects} <= set(PLACES)


@given(scenes)
def test_answers_follow_from_the_picture(scene: Scene) -> None:
    by_name = {" ".join(item.pair): item for item in scene.objects}
    for asked in (*questions(scene), *conversation(scene)):
        if asked.kind == "existence":
            name = re.sub(r"^Is there an? |\?$", "", asked.question)
            assert asked.answer == ("yes" if name in by_name else "no")
        elif asked.kind == "count":
            assert asked.answer == NUMBERS[len(scene.objects)]
        elif asked.kind == "colour":
            shape = re.findall(r"the (\w+)\?", asked.question)[0]
            assert [item.colour for item in scene.objects if item.shape == shape] == [asked.answer]
        elif asked.question.startswith("What is at"):
            place = asked.question.removeprefix("What is at the ").removesuffix("?")
            assert [" ".join(item.pair) for item in scene.objects if item.place == place] == [asked.answer]
        else:
            second, first = (by_name[name] for name in re.findall(r"the (\w+ \w+)(?: is|\?)", asked.question))
            dx, dy = first.x - second.x, first.y - second.y
            assert max(abs(dx), abs(dy)) > 3 * min(abs(dx), abs(dy))
            sides = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
            assert asked.answer == sides
    assert {"existence", "count"} <= {asked.kind for asked in questions(scene)}


@given(scenes)
def test_a_conversation_asks_of_existence_once_for_each_object_and_never_twice_the_same(scene: Scene) -> None:
    asked = [asked.question for asked in conversation(scene)]
    assert len(set(asked)) == len(asked)
    assert sum(question.startswith("Is there") for question in asked) == len(scene.objects)


def test_in_a_conversation_no_answer_of_existence_follows_from_the_one_before() -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    for index in range(4000):
        told = [asked.answer for asked in conversation(make_scene(3, index)) if asked.kind == "existence"]
        pairs.update(pairwise(told))
    total = pairs.total()
    assert all(abs(pairs[first, then] / total - 0.25) < 0.02 for first in ("yes", "no") for then in ("yes", "no"))


def test_shares_are_as_documented() -> None:
    drawn = [make_scene(3, index) for index in range(3000)]
    finishes = Counter(scene.finish for scene in drawn)
    assert 0.10 < 1 - finishes["clean"] / 3000 < 0.14
    existence = Counter(q.answer for scene in drawn for q in questions(scene) if q.kind == "existence")
    assert abs(existence["yes"] - 1500) < 120
    assert 0.66 < sum(scene.background in short_caption(scene) for scene in drawn) / 3000 < 0.74
    assert {make_scene(3, index, split="unseen").finish for index in range(200)} == {"clean"}
    words = {word for s in drawn for word in re.findall(r"[a-z]+", dense_caption(s).lower())}
    assert len(words) <= 200


def test_finishes_take_away_sharpness_or_colour() -> None:
    scene = make_scene(0, 2, objects=1)
    finishes = ("clean", "blurred", "faded")
    pictures = {finish: render(replace(scene, finish=finish)).astype(float) for finish in finishes}
    steepest = {finish: np.abs(np.diff(picture, axis=1)).max() for finish, picture in pictures.items()}
    colourful = {finish: np.ptp(picture, axis=-1).max() for finish, picture in pictures.items()}
    assert steepest["blurred"] < steepest["clean"] / 3
    assert colourful["faded"] < colourful["clean"] / 2


@given(scenes)
@settings(max_examples=20)
def test_pictures_are_rgb_bytes_of_the_asked_side(scene: Scene) -> None:
    picture = render(scene, 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
