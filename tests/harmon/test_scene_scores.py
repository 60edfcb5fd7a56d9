"""The detector sees what the renderer drew, and cannot be talked into seeing more; scores add up."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from harmon.evaluation.scene_tasks import TASKS, Task, score_tasks
from harmon.evaluation.scenes import (
    Asked,
    Score,
    Wanted,
    judge,
    normalised,
    score_answers,
    score_pictures,
    wanted_of,
)
from harmon.evaluation.sight import Sight, see
from harmon.model.patch_latent import PatchLatent
from pipelines.scenes import COLOURS, SHAPES, Scene, SceneObject, make_scene, render

torch.set_num_threads(1)
Rgb = NDArray[np.uint8]


def pairs(sight: Sight) -> Counter[tuple[str, str]]:
    return Counter((item.colour, item.shape) for item in sight.objects)


def truth(scene: Scene) -> Counter[tuple[str, str]]:
    return Counter(item.pair for item in scene.objects)


def worsened(picture: Rgb, blur: float, noise: float, seed: int) -> Rgb:
    """Blurred by `blur` pixels of 64 and with normal noise of deviation `noise` of 255."""
    sigma = blur * picture.shape[0] / 64
    soft = ndimage.gaussian_filter(picture.astype(np.float64), (sigma, sigma, 0))
    return np.clip(soft + np.random.default_rng(seed).normal(0, noise, picture.shape), 0, 255).astype(np.uint8)


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 10**6), objects=st.integers(1, 3), side=st.sampled_from([64, 128]))
def test_sees_every_clean_scene_exactly_as_it_was_made(index: int, objects: int, side: int) -> None:
    scene = make_scene(11, index, objects, "unseen")
    sight = see(render(scene, side))
    assert pairs(sight) == truth(scene)
    assert sight.background == scene.background
    by_place = {item.pair: (item.x, item.y) for item in scene.objects}
    for item in sight.objects:
        x, y = by_place[item.colour, item.shape]
        assert abs(item.x - x) < 0.04 and abs(item.y - y) < 0.04


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10**6), blur=st.floats(0, 3), noise=st.floats(0, 20), held_out=st.booleans())
def test_sees_one_object_through_blur_and_noise(index: int, blur: float, noise: float, held_out: bool) -> None:
    scene = make_scene(11, index, 1, "held_out" if held_out else "unseen")
    sight = see(worsened(render(scene, 64), blur, noise, index))
    assert pairs(sight) == truth(scene)
    assert sight.background == scene.background


def test_sees_every_colour_of_small_objects_through_light_blur_and_noise() -> None:
    for objects, least in ((2, 0.95), (4, 0.8)):
        scenes = [make_scene(11, index, objects, "unseen") for index in range(40)]
        sights = [see(worsened(render(scene, 64), 1, 10, scene.index)) for scene in scenes]
        for scene, sight in zip(scenes, sights, strict=True):
            assert Counter(item.colour for item in sight.objects) == Counter(item.colour for item in scene.objects)
        assert np.mean([pairs(sight) == truth(scene) for scene, sight in zip(scenes, sights, strict=True)]) >= least


@pytest.mark.parametrize(("side", "objects", "colour", "shape"), [(64, 1, 1.0, 0.9), (128, 2, 0.98, 0.95)])
def test_sees_colours_and_shapes_through_the_patch_latent(side: int, objects: int, colour: float, shape: float) -> None:
    def images(seed: int, count: int, number: int | None) -> tuple[list[Scene], torch.Tensor]:
        scenes = [make_scene(seed, index, number, "unseen") for index in range(count)]
        drawn = np.stack([render(scene, side) for scene in scenes])
        return scenes, torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1

    latent = PatchLatent.fit(images(1, 300, None)[1], channels=16, stride=16)
    scenes, pictures = images(2, 60, objects)
    back = ((latent.decode(latent.encode(pictures)) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    scores = score_pictures(
        [judge(wanted_of(scene), picture.permute(1, 2, 0).numpy()) for scene, picture in zip(scenes, back, strict=True)]
    )
    assert scores.colour.share >= colour
    assert scores.shape.share >= shape
    assert scores.background.share == 1.0


def test_pictures_without_a_scene_show_no_object() -> None:
    random = np.random.default_rng(0)
    for colour in COLOURS.values():
        assert see(np.full((64, 64, 3), colour, np.uint8)).objects == ()
    for _ in range(20):
        assert see(random.integers(0, 256, (64, 64, 3), np.uint8)).objects == ()
    assert see(np.full((64, 64, 3), 250, np.uint8)) == Sight("white", ())


def test_a_picture_of_every_colour_is_wrong_for_every_prompt() -> None:
    quilt = np.full((64, 64, 3), 250, np.uint8)
    for index, colour in enumerate(COLOURS.values()):
        row, column = divmod(index, 4)
        quilt[6 + 28 * row : 22 + 28 * row, 1 + 16 * column : 14 + 16 * column] = colour
    judged = [judge(Wanted(f"a {colour} square", ((colour, "square"),), None), quilt) for colour in COLOURS]
    scores = score_pictures(judged)
    assert scores.whole.right == 0 and scores.both.right == 0
    assert scores.colour.right == 1  # only the largest region counts, and it has one colour


def test_two_objects_need_exactly_their_two_colours() -> None:
    scene = make_scene(3, 5, 2, "unseen")
    one, three = make_scene(3, 5, 1, "unseen"), make_scene(3, 5, 3, "unseen")
    wanted = wanted_of(scene)
    assert judge(wanted, render(scene, 64)).colours
    assert not judge(wanted, render(one, 64)).colours
    assert not judge(wanted, render(three, 64)).colours


def test_the_background_counts_only_where_the_prompt_names_it() -> None:
    scenes = [make_scene(4, index, 1, "unseen") for index in range(40)]
    scores = score_pictures([judge(wanted_of(scene), render(scene, 64)) for scene in scenes])
    assert 0 < scores.background.n < 40
    assert scores.background.right == scores.background.n
    assert scores.colour == Score(40, 40, 1 / 8) and scores.shape == Score(40, 40, 1 / 4)


def test_pictures_of_different_object_counts_do_not_share_a_score() -> None:
    judged = [judge(wanted_of(scene), render(scene, 64)) for scene in (make_scene(1, 0, 1), make_scene(1, 0, 2))]
    with pytest.raises(ValueError, match="score each apart"):
        score_pictures(judged)


@pytest.mark.parametrize("shape", [(64, 64), (16, 16, 3), (64, 64, 4)])
def test_refuses_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("given_answer", "right"),
    [("Two.", "two"), ("2", "two"), (" the RED ", "red"), ("none", "no"), ("10", "10")],
)
def test_answers_are_compared_after_normalisation(given_answer: str, right: str) -> None:
    assert normalised(given_answer) == normalised(right)


@pytest.mark.parametrize("given_answer", ["", "red or blue", "not red", "redd", "yes no"])
def test_an_answer_that_says_more_or_less_is_wrong(given_answer: str) -> None:
    assert not Asked("colour", "What colour is the circle?", "red", given_answer).right


def test_the_best_constant_answer_is_taken_from_the_same_questions() -> None:
    asked = [Asked("count", "How many?", answer, "two") for answer in ("one", "two", "two", "three")]
    asked += [Asked("existence", "Is there?", "yes", "yes")]
    count, existence = score_answers(asked)
    assert (count.kind, count.constant, count.score) == ("count", "two", Score(2, 4, 0.5))
    assert (existence.kind, existence.score.right) == ("existence", 1)


def test_always_giving_the_constant_answer_scores_exactly_the_baseline() -> None:
    asked = [Asked("colour", "?", colour, "red") for colour in ("red", "red", "blue", "green")]
    (score,) = score_answers(asked)
    assert score.score.share == score.score.chance


def drawn_as(change: Callable[[tuple[SceneObject, ...]], tuple[SceneObject, ...]]) -> dict[Task, float]:
    """Shares of the six tasks where pictures show their scenes changed so."""
    scenes = [make_scene(6, index, 1 + index % 3, "unseen") for index in range(45)]
    judged = [judge(wanted_of(scene), render(replace(scene, objects=change(scene.objects)), 128)) for scene in scenes]
    return {task: score.share for task, score in score_tasks(judged).items()}


def swapped(objects: tuple[SceneObject, ...], *names: str) -> tuple[SceneObject, ...]:
    """The first two objects with these attributes exchanged."""
    if len(objects) < 2:
        return objects
    first, second, *rest = objects
    there = [{name: getattr(item, name) for name in names} for item in (first, second)]
    return replace(first, **there[1]), replace(second, **there[0]), *rest


def other(item: SceneObject, name: str, values: Iterable[str]) -> SceneObject:
    """An object with the next value of one attribute."""
    every = list(values)
    return replace(item, **{name: every[(every.index(getattr(item, name)) + 1) % len(every)]})


def test_rendered_truth_is_right_in_all_six_tasks() -> None:
    assert drawn_as(lambda objects: objects) == dict.fromkeys(TASKS, 1.0)


def test_each_planted_error_is_found_under_its_own_task() -> None:
    def wrong(change: Callable[[tuple[SceneObject, ...]], tuple[SceneObject, ...]]) -> set[str]:
        return {task for task, share in drawn_as(change).items() if share < 0.5}

    assert wrong(lambda objects: swapped(objects, "x", "y")) == {"position"}
    assert wrong(lambda objects: objects[:-1]) == set(TASKS)
    recoloured = wrong(lambda objects: (other(objects[0], "colour", COLOURS), *objects[1:]))
    assert recoloured == {"colors", "color_attr"}
    reshaped = wrong(lambda objects: (other(objects[0], "shape", SHAPES), *objects[1:]))
    assert reshaped == {"single_object", "two_object", "color_attr"}


def test_shuffled_truth_is_right_as_often_as_chance() -> None:
    for number, tasks in ((1, ("single_object", "colors")), (2, ("two_object", "color_attr"))):
        scenes = [make_scene(7, index, number, "unseen") for index in range(160)]
        sights = [render(scene, 64) for scene in scenes]
        scores = score_tasks(
            judge(wanted_of(scene), sight) for scene, sight in zip(scenes, sights[1:] + sights[:1], strict=True)
        )
        for task in tasks:
            chance = scores[task].chance
            assert chance is not None
            assert abs(scores[task].share - chance) < 3 * (chance * (1 - chance) / 160) ** 0.5 + 0.01
        if number == 2:
            assert scores["position"].share < 0.3 and scores["counting"].share == scores["counting"].chance == 1
