"""The stand-in internet is always published the same, agrees with its ground truth, and is served safely."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import HarmonError
from pipelines.loopback import serve
from pipelines.scenes import HELD_OUT_PAIRS, class_name, dense_caption, names_every_object, render
from pipelines.web import SIDE, STAMP, WebSettings, planted, publish, scene_of

SETTINGS = WebSettings(classes=4, scenes=8, texts=3)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "web"
    publish(folder, SETTINGS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def rows(folder: Path, source: str) -> list[dict[str, object]]:
    return pq.read_table(folder / f"list-{source}.parquet").to_pylist()


def test_publishing_again_changes_no_file_and_elsewhere_gives_the_same(web: Path, tmp_path: Path) -> None:
    before = times(web)
    publish(web, SETTINGS)
    assert times(web) == before
    publish(tmp_path / "web", SETTINGS)
    assert contents(tmp_path / "web") == contents(web)


def test_an_interrupted_publishing_is_completed_without_writing_again(web: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    publish(folder, SETTINGS)
    stamp = folder / STAMP
    stamp.write_bytes(stamp.read_bytes().replace(b"true", b"false"))
    (folder / "scenes/000/scene-000003.png").unlink()
    kept = folder / "scenes/000/scene-000002.png"
    before = kept.stat().st_mtime_ns
    publish(folder, SETTINGS)
    assert kept.stat().st_mtime_ns == before
    assert contents(folder) == contents(web)


def test_other_settings_replace_what_was_published(web: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    publish(folder, WebSettings(classes=2, scenes=20, texts=0, seed=5))
    publish(folder, SETTINGS)
    assert contents(folder) == contents(web)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(HarmonError, match="not published here"):
        publish(tmp_path, SETTINGS)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_every_row_of_scenes_agrees_with_its_ground_truth(web: Path) -> None:
    good = [row for row in rows(web, "scenes") if not str(row["row_id"]).startswith("bad-")]
    assert len(good) == SETTINGS.classes + SETTINGS.scenes + SETTINGS.texts
    for row in good:
        scene = scene_of(SETTINGS, str(row["row_id"]))
        assert not {item.pair for item in scene.objects} & HELD_OUT_PAIRS
        if row["task"] == "text":
            assert row["url"] is None and [turn["role"] for turn in row["conversations"]] == [
                "user",
                "assistant",
            ]
            continue
        served = web / str(row["url"]).removeprefix(f"{SETTINGS.root}/")
        assert (np.asarray(Image.open(served)) == render(scene, SIDE)).all()
        one = row["task"] == "text2image"
        assert row["caption"] == (class_name(scene) if one else dense_caption(scene))
        assert not one or len(scene.objects) == 1
        assert names_every_object(scene, str(row["caption"])) and bool(row["conversations"]) == (not one)


def test_every_planted_row_stands_in_its_list(web: Path) -> None:
    for bad in planted(SETTINGS):
        (row,) = [row for row in rows(web, bad.source) if row["row_id"] == bad.row_id]
        assert row["url"] == bad.url
    expected = {"http_404", "dead_link", "not_an_image", "truncated", "too_large", "forbidden_scheme"}
    assert expected | {"forbidden_address"} <= {bad.reason for bad in planted(SETTINGS)}


def test_an_unknown_row_has_no_ground_truth() -> None:
    with pytest.raises(HarmonError, match="scene-000012"):
        scene_of(SETTINGS, "bad-missing-1")


def test_files_below_the_folder_are_served_and_nothing_else(web: Path) -> None:
    (web.parent / "secret.txt").write_text("secret")
    with serve(web, 0) as url:
        with urllib.request.urlopen(f"{url}/photographs/chelsea.png") as answer:
            assert answer.read() == (web / "photographs/chelsea.png").read_bytes()
            assert answer.headers["Content-Type"] == "image/png"
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "//etc/passwd",
            "/scenes",
            "/photographs/%00",
            "/none",
        ):
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            connection.request("GET", path)
            assert connection.getresponse().status == 404
            connection.close()


def test_a_redirect_leads_where_it_was_asked_to(web: Path) -> None:
    with serve(web, 0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/redirect?to=http://169.254.169.254/latest/")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Location"]) == (302, "http://169.254.169.254/latest/")
        connection.close()


def test_a_taken_port_names_the_key_of_the_recipe(web: Path) -> None:
    with serve(web, 0) as url:
        again = serve(web, int(url.rpartition(":")[2]))
        with pytest.raises(HarmonError, match=r"web\.port"), again:
            pass


def test_the_server_ends_with_its_context(web: Path) -> None:
    with serve(web, 0) as url:
        pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)
