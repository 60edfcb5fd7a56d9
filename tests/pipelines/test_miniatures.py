"""Every catalogue entry goes from its publisher's layout to a committed dataset, and no row is lost on the way."""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipelines import catalogue, fetch
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.fetch import FetchSettings
from pipelines.forget import forget
from pipelines.ingest import READING, IngestSettings, ingest
from pipelines.listing import download_listed
from pipelines.loopback import serve
from pipelines.readers.files import local_files
from pipelines.request import Request
from pipelines.terms import Acceptance
from tests.parts import need
from tests.pipelines.miniatures import GOOD, WITH_IMAGES, WITH_LINKS, Miniature, entry, web

SETTINGS = IngestSettings(rows_per_shard=37)
YES = Acceptance(by="A. Tester", when=date(2026, 11, 22), what="the terms, for a test")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMON_SCRATCH", str(tmp_path / "scratch"))


def test_every_entry_that_reads_files_has_a_miniature() -> None:
    entries = [catalogue.source(name) for name in catalogue.names()]
    read = {entry.name for entry in entries if entry.layouts and not entry.override}
    assert read == WITH_IMAGES.keys() | WITH_LINKS.keys()


def accounted(dataset: Dataset, mini: Miniature) -> None:
    """Rows in = rows out + rejects, with the reasons, notes and captions that were planted."""
    rejects, rows = dataset.rejects(), dataset.whole_table("source").to_pylist()
    assert Counter(rejects.column("reason").to_pylist()) == mini.rejects
    assert len(rows) + rejects.num_rows == mini.rows >= 200
    captions = {row["row_id"]: row["caption"] for row in rows}
    assert {row_id: captions[row_id] for row_id in mini.captions} == mini.captions
    assert all((row["sha256"] is None) == (row["task"] == "text") for row in rows)
    report = audit(dataset, deep=True, decode=1.0)
    assert report.sound and not report.findings


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_an_entry_with_images_becomes_a_sound_dataset(name: str, tmp_path: Path) -> None:
    mini = WITH_IMAGES[name](tmp_path / "native")
    source = entry(name)
    dataset = Dataset(tmp_path / name)
    commit = ingest(dataset, local_files(source, tmp_path / "native"), SETTINGS, {name: YES})
    assert commit.rows_in == mini.rows and dict(commit.rejected) == mini.rejects
    accounted(dataset, mini)
    notes = Counter(dataset.whole_table(READING, ["note"]).column("note").to_pylist())
    assert Counter({note: n for note, n in notes.items() if note}) == mini.notes
    kinds = Counter(dataset.whole_table(READING, ["caption_kind"]).column("caption_kind").to_pylist())
    captioned = sum(row["caption"] is not None for row in dataset.whole_table("source").to_pylist())
    assert kinds.total() - kinds[None] == captioned and kinds["short"] == (
        GOOD // 2 if name == "mgm-pretrain" else kinds["short"]
    )
    tasks = set(dataset.whole_table("source", ["task"]).column("task").to_pylist())
    assert tasks - {"text"} == {source.task} and ("text" in tasks) == ("text_row" in mini.notes)
    again = ingest(Dataset(tmp_path / name), local_files(source, tmp_path / "native"), SETTINGS, {name: YES})
    assert again.number == commit.number


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    folder = tmp_path_factory.mktemp("web")
    web(folder)
    with serve(folder, 0) as address:
        yield address


@pytest.mark.parametrize("name", WITH_LINKS)
def test_an_entry_of_links_becomes_a_sound_dataset(name: str, site: str, tmp_path: Path) -> None:
    mini = WITH_LINKS[name](tmp_path / "native", site)
    source = entry(name)
    dataset = Dataset(tmp_path / name)
    settings = DownloadSettings(rows_per_shard=150, allow=("127.0.0.1/32",))
    files = local_files(source, tmp_path / "native")
    how = FetchSettings(retries=0)
    commit = download_listed(dataset, files, settings, {name: YES}, how)
    accounted(dataset, mini)
    assert sum(one.rows_in for one in dataset.commits()) == mini.rows
    assert download_listed(Dataset(tmp_path / name), files, settings, {name: YES}, how).number == commit.number


def test_a_listed_row_and_one_that_was_turned_away_can_be_forgotten(site: str, tmp_path: Path) -> None:
    """The rejects of the listing lie in shards of their own."""
    mini = WITH_LINKS["laion-aesthetics"](tmp_path / "native", site)
    source = catalogue.source("laion-aesthetics")
    dataset = Dataset(tmp_path / "d")
    settings = DownloadSettings(rows_per_shard=150, allow=("127.0.0.1/32",))
    files, how = local_files(source, tmp_path / "native"), FetchSettings(retries=0)
    download_listed(dataset, files, settings, {}, how)
    urls = frozenset({f"{site}/never-1.jpg", f"{site}/5.jpg"})
    forget(dataset, Request(urls=urls))
    assert dataset.total_rows == GOOD - 1 and audit(dataset, deep=True).sound
    left = dataset.rejects().filter(pc.not_equal(dataset.rejects()["step"], "forget"))
    assert not urls & set(left.column("url").to_pylist())
    assert download_listed(dataset, files, settings, {}, how).step == "download" and mini.rows == GOOD + 5
