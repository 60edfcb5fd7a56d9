"""Files of the hub are pinned to a commit, resumed, and checked against the hub's checksums; a mirror is honoured."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from pipelines import catalogue
from pipelines.acquire import Acquisition, acquire, is_acquired
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.errors import HarmonError
from pipelines.hub import fetch_files, list_files
from tests.pipelines.hub_server import COMMITS, Hub, serve_hub
from tests.pipelines.miniatures import picture

SOURCE = catalogue.source("blip3o-60k")
ASKED = Acquisition(DownloadSettings(rows_per_shard=50), {})


def archive(count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for n in range(count):
            for name, data in ((f"{n}.jpg", picture(n)), (f"{n}.txt", b"a mug")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    assert SOURCE.hub is not None
    files = {"dalle3.tar": archive(30), "text_1.tar": archive(20), "README.md": b"# card", "weights.bin": b"x" * 100}
    files["geneval_train.tar"] = b"left out by the entry"
    hub = Hub(SOURCE.hub, files)
    monkeypatch.setenv("HARMON_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serve_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def test_only_the_files_of_the_entry_are_fetched_and_the_commit_is_recorded(hub: Hub, tmp_path: Path) -> None:
    commit = acquire(Dataset(tmp_path / "d"), SOURCE, ASKED)
    assert commit.rows_out == 50 and commit.configuration["revision"] == COMMITS[0]
    assert {name for name in hub.asked if "." in name} == {"dalle3.tar", "text_1.tar"}


def test_a_dataset_keeps_to_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before any commit of the dataset
        acquire(Dataset(tmp_path / "d"), SOURCE, ASKED, stop)
    hub.head = 1
    assert acquire(Dataset(tmp_path / "d"), SOURCE, ASKED).configuration["revision"] == COMMITS[0]
    assert acquire(Dataset(tmp_path / "d"), SOURCE, ASKED).number == 0
    assert acquire(Dataset(tmp_path / "e"), SOURCE, ASKED).configuration["revision"] == COMMITS[1]


def test_a_download_that_breaks_off_goes_on_and_nothing_is_fetched_twice(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # 10 MiB: more than the file has
    hub.cut = {"dalle3.tar"}
    root = fetch_files(SOURCE, list_files(SOURCE))
    assert (root / "dalle3.tar").read_bytes() == hub.files["dalle3.tar"]
    assert any(one.startswith("dalle3.tar@") and not one.endswith("@0") for one in hub.ranges)
    asked = dict(hub.asked)
    assert fetch_files(SOURCE, list_files(SOURCE)) == root
    assert {n: c for n, c in hub.asked.items() if n != "info"} == {n: c for n, c in asked.items() if n != "info"}


def test_other_bytes_than_announced_are_refused(hub: Hub) -> None:
    hub.altered = {"text_1.tar"}
    with pytest.raises(HarmonError, match=r"text_1\.tar.* other bytes"):
        fetch_files(SOURCE, list_files(SOURCE))


def test_a_file_that_changed_on_disk_is_fetched_again(hub: Hub) -> None:
    root = fetch_files(SOURCE, list_files(SOURCE))
    (root / "text_1.tar").write_bytes(b"?" * len(hub.files["text_1.tar"]))
    fetch_files(SOURCE, list_files(SOURCE))
    assert (root / "text_1.tar").read_bytes() == hub.files["text_1.tar"]


def test_only_the_files_that_are_asked_for_are_fetched(hub: Hub, tmp_path: Path) -> None:
    asked = Acquisition(ASKED.settings, {}, only=("text_*.tar",))
    assert acquire(Dataset(tmp_path / "d"), SOURCE, asked).rows_out == 20
    assert hub.asked["dalle3.tar"] == 0
    assert acquire(Dataset(tmp_path / "e"), SOURCE, ASKED).rows_out == 50
    assert acquire(Dataset(tmp_path / "f"), SOURCE, asked).rows_out == 20  # though both files are here now
    assert not (tmp_path / "f/.work").exists()
    assert is_acquired(Dataset(tmp_path / "f"), SOURCE, asked)
    assert not is_acquired(Dataset(tmp_path / "f"), SOURCE, ASKED)  # more files are asked for
    assert not is_acquired(Dataset(tmp_path / "nothing"), SOURCE, asked)


def test_a_damaged_file_can_be_left_out_and_the_key_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.files["dalle3.tar"] = hub.files["dalle3.tar"][:20_000]
    with pytest.raises(HarmonError, match=r"dalle3\.tar.*(damaged|cut)"):
        acquire(Dataset(tmp_path / "d"), SOURCE, ASKED)
    rest = catalogue.without(SOURCE, ["dalle*.tar"])
    commit = acquire(Dataset(tmp_path / "e"), rest, ASKED)
    assert commit.rows_out == 20 and commit.configuration["layout"]["without"] == ["geneval_train.tar", "dalle*.tar"]
    assert is_acquired(Dataset(tmp_path / "e"), rest, ASKED)
    assert not is_acquired(Dataset(tmp_path / "e"), SOURCE, ASKED)


def test_a_gate_a_missing_layout_and_a_hub_that_is_away_are_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"train.parquet": b"x"}
    with pytest.raises(HarmonError, match=r"has none of \*\.tar.* it has train\.parquet"):
        list_files(SOURCE)
    hub.files = {"../up.tar": b"x"}
    with pytest.raises(HarmonError, match="no name below a folder"):
        list_files(SOURCE)
    hub.gated = True
    with pytest.raises(HarmonError, match="gated: ask for access"):
        list_files(SOURCE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HarmonError, match="cannot be read"):
        list_files(SOURCE)


def test_a_pattern_that_leaves_out_nothing_is_told(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listing = list_files(catalogue.without(SOURCE, ["dale*.tar"]))
    assert len(listing.files) > 1 and "'dale*.tar' leaves out nothing" in caplog.text
    caplog.clear()
    list_files(catalogue.without(SOURCE, ["dalle*.tar"]))
    assert not caplog.text
