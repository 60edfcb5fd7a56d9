"""What a person names decides who looks at the pictures; half of what is needed is an error."""

from pathlib import Path

import pytest

from harmon.evaluation.examiner import Comparing, Missing
from harmon.evaluation.examiners import MISSING, NOTHING, Means, check_means, open_examiner
from pipelines.errors import ConfigurationError
from tests.harmon.test_fid import averaging


@pytest.mark.parametrize("benchmark", MISSING)
def test_without_means_it_says_what_is_missing(benchmark: str, tmp_path: Path) -> None:
    found = open_examiner(benchmark, NOTHING, tmp_path)
    assert isinstance(found, Missing)
    assert "--examine" in found.remedy


def test_a_judge_looks_at_wise_and_dpg_and_says_what_differs(tmp_path: Path) -> None:
    means = Means(judge="http://127.0.0.1:9", judge_model="m")
    wise = open_examiner("wise-legacy", means, tmp_path)
    verified = open_examiner("wise-verified", means, tmp_path)
    dpg = open_examiner("dpg-bench", means, tmp_path)
    for found in (wise, verified, dpg):
        assert not isinstance(found, Missing)
        assert found.name.startswith("m, asked as harmon-")
        assert len(found.differs) == 2
    (tmp_path / "x_detail.txt").write_text("a.png, (0, 0, 8, 8), Is it?, yes\n")
    official = open_examiner("dpg-bench", Means(answers=tmp_path / "x_detail.txt"), tmp_path)
    assert not isinstance(official, Missing)
    assert official.differs == ()


def test_fid_compares_with_published_statistics_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.setattr("harmon.evaluation.fid.inception.load_extractor", lambda *_: averaging())
    np.savez(tmp_path / "s.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    means = Means(extractor="clean-fid", statistics=tmp_path / "s.npz", features=tmp_path / "f")
    found = open_examiner("mjhq-30k", means, tmp_path)
    assert isinstance(found, Comparing)
    assert found.reference().moments.mean.shape == (2048,)
    with pytest.raises(ConfigurationError, match="it has mjhq-30k-512, mjhq-30k-1024"):
        open_examiner("mjhq-30k", means.model_copy(update={"protocol": "mscoco-30k-all"}), tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "means"),
    [
        ("geneval", Means(detector=Path("/"))),
        ("geneval", Means(clip=Path("/"))),
        ("wise-legacy", Means(judge="http://x")),
        ("dpg-bench", Means(judge_model="m")),
    ],
)
def test_half_of_what_is_needed_is_an_error(benchmark: str, means: Means, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs both"):
        open_examiner(benchmark, means, tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "means", "name"),
    [
        ("geneval", Means(results=Path("nowhere.jsonl")), "results"),
        ("geneval", Means(detector=Path("/"), clip=Path("nowhere")), "clip"),
        ("wise-legacy", Means(judge="http://x", judge_model="m", judge_prompt=Path("nowhere")), "judge_prompt"),
        ("mscoco-30k", Means(extractor="clean-fid", inception=Path("nowhere")), "inception"),
    ],
)
def test_a_file_that_is_not_there_is_an_error_before_pictures_are_drawn(
    benchmark: str, means: Means, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"There is no nowhere.*, which --examine {name} names"):
        check_means(benchmark, means)
