"""The benchmark of filtering runs at a toy size; it fails by itself where a picture is judged wrongly."""

from pathlib import Path

import pytest

from benchmarks import filtering


def test_headers_are_judged_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filtering.headers(tmp_path, filtering.make_images(20), rounds=1, peer=False)
    assert "images/CPU-s" in capsys.readouterr().out


def test_an_accelerator_is_fed(capsys: pytest.CaptureFixture[str]) -> None:
    filtering.feeding(filtering.make_images(20))
    assert capsys.readouterr().out.count("% busy") == 2
