"""Published captions join a dataset by link or member; a row without one says so, and nothing else changes."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import catalogue
from pipelines.acquire import Acquisition, acquire
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings
from pipelines.errors import ConfigurationError, HarmonError
from tests.pipelines.miniatures import GOOD, WITH_IMAGES, parquet, picture, tar
from tests.pipelines.test_miniatures import scratch

__all__ = ["scratch"]  # the fixture, for this module too


def made(name: str, folder: Path) -> Dataset:
    WITH_IMAGES[name](folder / "native")
    dataset = Dataset(folder / name)
    acquire(dataset, catalogue.source(name), asked(folder / "native"))
    return dataset


def asked(folder: Path) -> Acquisition:
    return Acquisition(DownloadSettings(rows_per_shard=60), {}, folder=folder)


def links(folder: Path, urls: list[str], **names: str) -> Path:
    url, caption = names.get("url", "url_highres"), names.get("caption", "caption_internlm2_short")
    rows = [{url: one, caption: f"Rice, {number}." if number != 7 else None} for number, one in enumerate(urls)]
    parquet(folder / "train/train_0000.parquet", rows, pa.schema([(url, pa.string()), (caption, pa.string())]))
    return folder


URLS = [f"https://live.example.com/{n}_o.jpg" for n in range(GOOD - 20)]


def test_captions_by_link_go_to_the_rows_with_that_link(tmp_path: Path) -> None:
    dataset = made("megalith-10m-images", tmp_path)
    before = dataset.head
    folder = links(tmp_path / "captions", [*URLS, "https://elsewhere.example.com/x.jpg", URLS[3]])
    commit = acquire(dataset, catalogue.source("megalith-10m-captions"), asked(folder))
    (group,) = [name for name in dataset.groups() if name.startswith("caption.published-megalith-10m-captions-")]
    rows = {
        row["row_id"]: told
        for row, told in zip(
            dataset.whole_table("source").to_pylist(), dataset.whole_table(group).to_pylist(), strict=True
        )
    }
    assert rows["00000.tar#000000003"]["text"] == "Rice, 3."  # the first of two
    assert rows["00000.tar#000000007"] | {"key": ""} == {
        "key": "", "text": None, "status": "failed", "reason": "no_published_caption"
    }  # fmt: skip
    assert commit.failed == {"no_published_caption": 21} and commit.rows_out == GOOD - 21
    assert before is not None and set(commit.terms) == {"megalith-10m-images", "megalith-10m-captions"}
    assert audit(dataset, deep=True).sound
    assert acquire(dataset, catalogue.source("megalith-10m-captions"), asked(folder)).number == commit.number


@pytest.mark.parametrize(
    ("name", "field"), [("cc12m-recap", "re_caption"), ("megalith-10m-recap", "caption_internlm2_short")]
)
def test_captions_in_tars_go_to_the_members_of_that_key(name: str, field: str, tmp_path: Path) -> None:
    of = {"cc12m-recap": "cc12m-wds", "megalith-10m-recap": "megalith-10m-images"}[name]
    dataset = made(of, tmp_path)
    members = [(f"part/{n:09}.json", json.dumps({field: f"Short, {n}."}).encode()) for n in range(0, GOOD, 2)]
    tar(tmp_path / "captions/0.tar", members)
    commit = acquire(dataset, catalogue.source(name), asked(tmp_path / "captions"))
    assert commit.failed == {"no_published_caption": GOOD // 2}
    (group,) = [one for one in dataset.groups() if one.startswith("caption.")]
    texts = Counter(dataset.whole_table(group).column("text").to_pylist())
    assert texts["Short, 4."] == 1 and texts[None] == GOOD // 2


def captions(folder: Path, tars: dict[str, dict[str, str]]) -> Path:
    for name, told in tars.items():
        members = [(f"{key}.json", json.dumps({"re_caption": text}).encode()) for key, text in told.items()]
        tar(folder / name, members)
    return folder


def images(folder: Path, tars: dict[str, list[str]]) -> Dataset:
    for name, keys in tars.items():
        tar(folder / "native" / name, [(f"{key}.{end}", data) for key in keys for end, data in pair(name + key)])
    dataset = Dataset(folder / "cc12m-wds")
    acquire(dataset, catalogue.source("cc12m-wds"), asked(folder / "native"))
    return dataset


def pair(text: str) -> list[tuple[str, bytes]]:
    return [("jpg", picture(len(text))), ("txt", text.encode())]


def test_two_captions_of_one_key_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    dataset = images(tmp_path, {"a.tar": ["000", "001"]})
    same = captions(tmp_path / "same", {"x.tar": {"000": "A cat."}, "y.tar": {"000": "A cat."}})
    assert acquire(dataset, catalogue.source("cc12m-recap"), asked(same)).rows_out == 1
    differ = captions(tmp_path / "differ", {"x.tar": {"000": "A cat."}, "y.tar": {"000": "A dog."}})
    with pytest.raises(HarmonError, match=r"x\.tar#000 and y\.tar#000 are captions of one key and differ"):
        acquire(dataset, catalogue.source("cc12m-recap"), asked(differ))


def test_two_rows_of_one_key_are_an_error_and_can_be_told_apart_by_their_tars(tmp_path: Path) -> None:
    dataset = images(tmp_path, {"p/a.tar": ["000", "001"], "p/b.tar": ["000"]})
    told = captions(tmp_path / "c", {"a.tar": {"000": "A cat."}, "b.tar": {"000": "A dog.", "009": "Nobody's."}})
    only = captions(tmp_path / "only", {"a.tar": {"000": "A cat."}})
    for folder, said in ((told, r"a\.tar#000 and b\.tar#000"), (only, r"p/a\.tar#000 and p/b\.tar#000 are rows")):
        with pytest.raises(HarmonError, match=rf"{said}.*--set override\.by=tar-member"):
            acquire(dataset, catalogue.source("cc12m-recap"), asked(folder))
    assert len(dataset.commits()) == 1
    by_tar = catalogue.source("cc12m-recap", settings=["override.by=tar-member"])
    acquire(dataset, by_tar, asked(told))
    (group,) = [one for one in dataset.groups() if one.startswith("caption.")]
    rows = dataset.whole_table("source").column("row_id").to_pylist()
    texts = dataset.whole_table(group).column("text").to_pylist()
    assert dict(zip(rows, texts, strict=True)) == {
        "p/a.tar#000": "A cat.", "p/a.tar#001": None, "p/b.tar#000": "A dog."
    }  # fmt: skip


@pytest.mark.parametrize("name", ["laion6m-recap", "redcaps5m-recap"])
def test_captions_for_other_sources_describe_no_row(name: str, tmp_path: Path) -> None:
    dataset = made("megalith-10m-images", tmp_path)
    folder = links(tmp_path / "captions", URLS, url="url", caption="re_caption")
    with pytest.raises(HarmonError, match=rf"none of the \d+ captions of {name} belongs to a row"):
        acquire(dataset, catalogue.source(name), asked(folder))
    assert len(dataset.commits()) == 1
    with pytest.raises(ConfigurationError, match="has no rows; download one of those"):
        acquire(Dataset(tmp_path / "empty"), catalogue.source(name), asked(folder))
    renamed = links(tmp_path / "renamed", URLS, url="url", caption="caption_by_72b")
    with pytest.raises(HarmonError, match=r"train_0000\.parquet has no field re_caption"):
        acquire(dataset, catalogue.source(name), asked(renamed))
