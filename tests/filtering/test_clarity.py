"""Clarity finds blurred and faded pictures and is exactly what its definition says."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filtering.clarity import GROUP, SIDE, measure, score_clarity, shrunk
from pipelines.audit import audit
from pipelines.scenes import make_scene
from tests.filtering.pictured import Row, encoded, jpeg, write_rows

DEMO_THRESHOLD = 0.48  # of flows/recipes/demo.yaml


def test_most_flawed_scenes_are_below_the_demos_threshold_and_most_clean_ones_above() -> None:
    below: dict[str, list[bool]] = {"clean": [], "blurred": [], "faded": []}
    for index in range(300):
        clarity = measure(shrunk(jpeg(index, (128, 128)), SIDE)).clarity
        below[make_scene(7, index).finish].append(clarity < DEMO_THRESHOLD)
    assert np.mean(below["blurred"]) >= 0.98
    assert np.mean(below["faded"]) >= 0.85
    assert np.mean(below["clean"]) <= 0.12


def test_a_plain_colour_has_no_sharpness_and_the_colourfulness_of_its_opponents() -> None:
    found = measure(np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8))
    assert found.sharpness == 0
    assert found.colourfulness == pytest.approx(0.3 * np.hypot(255, 127.5))
    assert found.clarity == 0


def test_a_checkerboard_of_grey_is_sharp_and_has_no_colour() -> None:
    board = np.indices((10, 10)).sum(axis=0) % 2 * 100
    found = measure(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    assert found.sharpness == pytest.approx(400.0**2)  # the Laplacian is +400 or -400 at every pixel
    assert found.colourfulness == 0


def test_two_colours_of_equal_brightness_make_a_sharp_edge() -> None:
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:, :8], picture[:, 8:] = (150, 0, 0), (0, 76, 0)
    assert measure(picture).sharpness > 100


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_clarity_lies_between_0_and_1_and_is_the_same_mirrored(height: int, width: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found, mirrored = measure(picture), measure(picture[:, ::-1])
    assert 0 <= found.clarity < 1
    assert found.clarity == pytest.approx(mirrored.clarity)


def test_large_pictures_are_shrunk_and_small_ones_left_alone() -> None:
    assert shrunk(jpeg(1, (1600, 800)), SIDE).shape == (128, 256, 3)
    assert shrunk(jpeg(1, (90, 60)), SIDE).shape == (60, 90, 3)
    assert shrunk(encoded(np.zeros((2, 2000, 3))), SIDE).shape == (3, 256, 3)


def test_grey_and_transparent_pictures_are_measured_too() -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        stream = io.BytesIO()
        Image.new(mode, (30, 20)).save(stream, "TIFF")
        assert shrunk(stream.getvalue(), SIDE).shape == (20, 30, 3)


def test_every_row_is_measured_or_says_why_not(tmp_path: Path) -> None:
    good, text = Row("good", 1), Row("text", text=True)
    broken, cut = Row("broken", data=b"<html>"), Row("cut", data=jpeg(2, (128, 128))[:900])
    dataset = write_rows(tmp_path / "scenes", [good, text, broken, cut, Row("more", 3), Row("last", 4)])
    commit = score_clarity(dataset)
    rows = dataset.whole_table(GROUP).to_pylist()
    assert [row["reason"] for row in rows] == [None, "no_image", "undecodable", "undecodable", None, None]
    assert all((row["clarity"] is None) == (row["status"] == "failed") for row in rows)
    assert (commit.rows_in, commit.rows_out) == (6, 3)
    assert rows[0]["clarity"] == pytest.approx(measure(shrunk(good.picture, SIDE)).clarity)
    assert score_clarity(dataset) == commit
    assert audit(dataset, deep=True).sound


def test_a_dataset_of_text_alone_is_measured_without_images(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "texts", [Row(f"text {n}", text=True) for n in range(3)])
    assert dict(score_clarity(dataset).failed) == {"no_image": 3}
