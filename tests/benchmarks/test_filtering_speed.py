"""The benchmark of filtering runs at a toy size; it fails by itself where a picture is judged wrongly."""

from pathlib import Path

import pytest

from benchmarks import filtering


def test_headers_are_judged_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filtering.headers(tmp_path, filtering.make_images(20), rounds=1, peer=False)
    assert "images/CPU-s" in capsys.readouterr().out


def test_preprocessing_is_compared_with_opencv_where_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = filtering.preprocessing(tmp_path, filtering.make_images(4), rounds=1)
    assert measured["preprocess"] > 0
    said = capsys.readouterr().out
    assert "bare decode and resize, OpenCV" in said if filtering.OPENCV.exists() else "OpenCV: left out" in said


def test_a_missed_goal_ends_the_benchmark_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    met = dict.fromkeys(filtering.GOALS, 1e9)
    assert filtering.verdict(met) == 0
    assert filtering.verdict(met | {"busy": 0.5}) == 1
    assert "missed: busy 0.5" in capsys.readouterr().out
    assert filtering.verdict({"rate": 1e9}) == 0
    assert "not measured: peer" in capsys.readouterr().out


@pytest.mark.alone
def test_an_accelerator_is_fed(capsys: pytest.CaptureFixture[str]) -> None:
    filtering.feeding(filtering.make_images(20))
    assert capsys.readouterr().out.count("% busy") == 2
