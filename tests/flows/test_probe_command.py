"""`harmon probe` as a person types it: from the demo's parts to a report."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from skimage import data_dir

from flows.cli import main
from tests.filtering.pictured import tiny_clip
from tests.parts import need

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking"


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("probe")
    tiny_clip(folder)
    photograph = Path(data_dir) / "astronaut.png"
    arguments = ("probe", "demo", "--data", "scene-colours", "-o", folder / "out", "--limit", 60, "--shown", 2)
    arguments += ("--clip", folder / "tiny-stand-in.json", "--picture", photograph, "--json")
    return folder / "out", harmon(*arguments, "--diffusion-steps", 4, "--clip-x0", 3)


def test_every_encoder_is_probed_mapped_and_named_as_the_stand_in_it_is(made: tuple[Path, Result]) -> None:
    out, done = made
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == json.loads((out / "study.json").read_text()) | {"report": str(out / "report.html")}
    names = [one["encoder"] for one in said["encoders"]]
    assert names == ["MAR (demo)", "Patch latent (demo)", "VAE (demo)", "tiny-stand-in, random"]
    assert all(one["stand_in"] for one in said["encoders"])
    for one in said["encoders"]:
        assert one["probe"]["top1"]["n"] + one["probe"]["trained_on"] == 60
        assert one["probe"]["top5"]["share"] >= one["probe"]["top1"]["share"]
        assert 0 < one["probe"]["shuffled"]["chance"] < 0.5
        assert one["pointing"]["n"] == one["probe"]["top1"]["n"]
    drawn = said["encoders"][0]["reconstruction"]
    assert set(drawn) == {"flat", "autoencoder", "visible", "left_out"}
    assert drawn["autoencoder"]["psnr"] > drawn["flat"]["psnr"]
    assert said["encoders"][1]["reconstruction"] is None


def test_the_report_names_stand_ins_chance_and_the_caveat_about_classes(made: tuple[Path, Result]) -> None:
    page = (made[0] / "report.html").read_text()
    for words in ("MAR (demo) (stand-in)", "random weights", "chance", "fake_latent", "no VQGAN", "the bound"):
        assert words in page, words
    # four encoders' maps of two pictures and the two; three pictures, their bound and both readings
    assert page.count("<img") == 2 * 5 + 3 * 4


def test_a_browser_shows_the_report(made: tuple[Path, Result], tmp_path: Path) -> None:
    need(CHROMIUM is not None, "Chromium is not installed: apt-get install chromium")
    page = made[0] / "report.html"
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert shown.count("<img") == page.read_text().count("<img")
    assert "Where the probe looks" in shown


def test_a_second_run_reads_the_features_and_says_the_same(made: tuple[Path, Result]) -> None:
    out, first = made
    before = {path: path.stat().st_mtime_ns for path in out.glob("features/*/*.parquet")}
    assert len(before) == 4
    again = harmon("probe", "demo", "--data", "scene-colours", "-o", out, "--limit", 60, "--shown", 0, "--json")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.glob("features/*/*.parquet")} == before
    probes = [[one["probe"] for one in json.loads(r.stdout.splitlines()[-1])["encoders"]][:3] for r in (first, again)]
    assert probes[0] == probes[1]


def test_buffers_are_pooled_of_mar_alone_and_have_no_map(made: tuple[Path, Result], tmp_path: Path) -> None:
    arguments = (
        "--data",
        "scene-colours",
        "-o",
        tmp_path,
        "--limit",
        40,
        "--shown",
        0,
        "--pooling",
        "buffers",
        "--json",
    )
    done = harmon("probe", "demo", *arguments)
    assert done.exit_code == 0, done.output
    (only,) = json.loads(done.stdout.splitlines()[-1])["encoders"]
    assert only["encoder"] == "MAR (demo)" and only["pointing"] is None
    assert "which lie nowhere in a picture" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("demo", "--data", "nowhere"), "There are no pictures nowhere"),
        (("--data", "digits"), "Name a CHECKPOINT"),
        (("demo", "--mar", "x.pth", "--data", "digits"), "not both"),
        (("--mar", "x.pth", "--data", "digits"), "needs the autoencoder"),
        (("demo", "--data", "digits", "--picture", "none.png"), "There is no picture none.png"),
        (("--data", "digits", "--clip", "ViT-B-32", "--pooling", "buffers"), "unless buffers are pooled"),
        (("--data", "digits", "--clip", "ViT-B-77"), "open_clip knows no network 'ViT-B-77'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_with_code_2(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = harmon("probe", *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 2 and words in done.stderr, done.output
    assert done.stderr.count("\n") == 1
