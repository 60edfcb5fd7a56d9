"""Readers give every row once, from any row on, and say which file and field the entry is wrong about."""

import csv
import gzip
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import catalogue
from pipelines.catalogue import Source
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.ingest import IngestSettings, ingest
from pipelines.layouts import glob_pattern
from pipelines.readers import json_stream
from pipelines.readers.files import local_files, open_reader
from pipelines.readers.json_stream import read_record, read_records
from pipelines.readers.row import Native
from pipelines.readers.rules import Reject, Sample, cleaned, sample_of
from pipelines.steps import Progress
from tests.pipelines.miniatures import GOOD, WITH_IMAGES, chat, entry, parquet, picture, tar, zipped
from tests.pipelines.test_miniatures import YES, scratch

__all__ = ["scratch"]  # the fixture, for this module too

CAP = 1 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)


# JSON


@settings(max_examples=15, deadline=None)
@given(
    records=st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    piece=st.sampled_from([1, 7, 64, 4096]),
)
def test_an_array_read_in_any_pieces_is_the_array(
    records: list[Any], indent: int | None, ascii_only: bool, piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    data = text.encode("utf-8", "surrogatepass" if ascii_only else "replace")
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(data)
    wanted = json.loads(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "PIECE", piece)
        found = list(read_records(path))
        assert [one.value for one in found] == wanted
        for number, one in enumerate(found):
            assert [again.value for again in read_records(path, one.offset)] == wanted[number:]
            with path.open("rb") as stream:
                assert read_record(stream, one.offset, one.size) == one.value


@settings(max_examples=25, deadline=None)
@given(
    records=st.lists(st.dictionaries(st.text(), JSON, max_size=3) | st.sampled_from([1, "x", None]), min_size=1),
    data=st.data(),
)
def test_a_cut_array_is_an_error_and_never_a_shorter_array(
    records: list[Any], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = json.dumps(records).encode()
    path = tmp_path_factory.mktemp("cut") / "a.json"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with pytest.raises(HarmonError, match=r"a\.json"):
        list(read_records(path))


def test_bad_lines_and_odd_elements_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = ['\ufeff{"a": 1}', "", "[1]", '{"a": ', '{"a": "é"}', '{"a": 1' + "0" * 5000 + "}", "[" * 100_000]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = list(read_records(tmp_path / "x.jsonl"))
    assert [one.value if one.problem is None else None for one in found] == [
        {"a": 1},
        None,
        None,
        {"a": "é"},
        None,
        None,
    ]
    (tmp_path / "y.json").write_text('[{"a": 1}, 7, {"a": 2}]')
    assert [one.problem for one in read_records(tmp_path / "y.json")] == [None, "int, not an object", None]
    (tmp_path / "z.json").write_text('{"a": 1}')
    with pytest.raises(HarmonError, match="no JSON array"):
        list(read_records(tmp_path / "z.json"))


def test_a_record_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "MAX_RECORD", 1 << 16)
    monkeypatch.setattr(json_stream, "PIECE", 1 << 12)
    (tmp_path / "a.json").write_bytes(b'[{"a": "' + b"x" * (1 << 18) + b'"}]')
    with pytest.raises(HarmonError, match="damaged at byte 1"):
        list(read_records(tmp_path / "a.json"))
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "' + b"x" * (1 << 18) + b'"}\n{"a": 2}\n')
    found = list(read_records(tmp_path / "a.jsonl"))
    assert found[0].problem is not None and found[0].size == (1 << 18) + 10 and found[1].value == {"a": 2}


# Every layout


@pytest.mark.parametrize("name", [name for name in WITH_IMAGES if name != "own-folder"])
def test_reading_from_any_row_on_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WITH_IMAGES[name](tmp_path / "native")
    (tmp_path / "work").mkdir()
    reader = open_reader(local_files(catalogue.source(name), tmp_path / "native"), tmp_path / "work", CAP)
    for file in reader.files:
        marks = list(reader.index(file))
        rows = list(reader.rows(file, marks[0].cursor, 0, len(marks)))
        assert len(rows) == len(marks)
        for first in {1, len(marks) // 2, len(marks) - 1} & set(range(len(marks))):
            assert list(reader.rows(file, marks[first].cursor, first, 3)) == rows[first : first + 3]


def test_a_killed_reading_goes_on_and_ends_in_the_same_dataset(tmp_path: Path) -> None:
    WITH_IMAGES["mgm-pretrain"](tmp_path / "native")
    source = catalogue.source("mgm-pretrain")
    files, accepted = local_files(source, tmp_path / "native"), {source.name: YES}
    whole = ingest(Dataset(tmp_path / "whole"), files, IngestSettings(rows_per_shard=20), accepted)

    def kill(progress: Progress) -> None:
        if progress.shards_done in (2, 5, 9):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            ingest(Dataset(tmp_path / "killed"), files, IngestSettings(rows_per_shard=20), accepted, kill)
    done: list[Progress] = []
    killed = ingest(Dataset(tmp_path / "killed"), files, IngestSettings(rows_per_shard=20), accepted, done.append)
    assert killed.content_hash == whole.content_hash and len(done) == whole.files[-1].shard + 1 - 9


def test_an_id_that_repeats_far_away_is_rejected_once(tmp_path: Path) -> None:
    rows = [
        {"id": str(n % 150), "image": {"bytes": picture(n), "path": "x"}, "conversations": chat("x")}
        for n in range(200)
    ]
    schema = pq.read_schema(_recap(tmp_path / "schema"))
    parquet(tmp_path / "native/data/train-00000-of-00001.parquet", rows, schema)
    files = local_files(catalogue.source("llava-recap-cc3m"), tmp_path / "native")
    commit = ingest(Dataset(tmp_path / "d"), files, IngestSettings(rows_per_shard=30), {})
    assert commit.rejected == {"duplicate_row_id": 50}
    kept = Dataset(tmp_path / "d").whole_table("source").column("row_id").to_pylist()
    assert kept == [str(n) for n in range(150)]


def _recap(folder: Path) -> Path:
    WITH_IMAGES["llava-recap-cc3m"](folder)
    return folder / "data/train-00000-of-00002.parquet"


# Wrong guesses


def _without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {("renamed_" + name if name == field else name): value for name, value in row.items()}


@pytest.mark.parametrize(
    ("name", "file", "field", "column"),
    [
        ("llava-recap-cc3m", "data/train-00000-of-00002.parquet", "conversations", "conversations"),
        ("imagenet-1k", "data/train-00000-of-00001.parquet", "label", "label"),
        ("densefusion-1m", "DenseFusion-1M/DenseFusion-1M.jsonl", "image", "image_path"),
        ("mgm-pretrain", "mgm_pretrain.json", "conversations", "conversations"),
        ("infinity-mm", "stage2/7M_0712_math_plus_system_release/part/00000.tar", "conversations", "conversations"),
        ("text-to-image-2m", "data_512_2M/data_000000.tar", "caption", "prompt"),
        ("journeydb", "data/train/train_anno_realease_repath.jsonl.tgz", "row_id", "img_path"),
    ],
)
def test_a_field_that_no_row_has_is_an_error_naming_file_and_field(
    name: str, file: str, field: str, column: str, tmp_path: Path
) -> None:
    """The entry guesses a name; a real file turns out to have another."""
    WITH_IMAGES[name](tmp_path / "native")
    rename(tmp_path / "native" / file, column)
    source = entry(name)
    dataset = Dataset(tmp_path / "d")
    with pytest.raises(HarmonError) as caught:
        ingest(dataset, local_files(source, tmp_path / "native"), IngestSettings(), {name: YES})
    assert file in str(caught.value) and f"the {field} of a row" in str(caught.value) and column in str(caught.value)
    assert f"renamed_{column}" in str(caught.value) and dataset.head is None


def rename(path: Path, column: str) -> None:
    """The same file with a field called otherwise."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([f"renamed_{n}" if n == column else n for n in table.column_names]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([_without(row, column) for row in json.loads(path.read_text())]))
    elif path.suffix == ".jsonl":
        path.write_text(path.read_text().replace(f'"{column}"', f'"renamed_{column}"'))
    else:
        with tarfile.open(path) as archive:
            members = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
        old, new = f'"{column}"'.encode(), f'"renamed_{column}"'.encode()
        tar(path, [(n, d.replace(old, new)) for n, d in members], "w:gz" if path.suffix == ".tgz" else "w")


def test_a_table_of_links_without_its_column_or_gate_is_an_error(tmp_path: Path) -> None:
    from pipelines.download import DownloadSettings
    from pipelines.listing import download_listed

    source = catalogue.source("laion-aesthetics")
    for row, said in (({"link": "x", "TEXT": "x"}, "the row_id"), ({"URL": "x", "TEXT": "x"}, "punsafe")):
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / "train.parquet")
        with pytest.raises(HarmonError, match=rf"train\.parquet.*{said}"):
            download_listed(Dataset(tmp_path / "d"), local_files(source, tmp_path), DownloadSettings(), {})
    gated = entry("own-links", "layouts.0.gates=[{field: [unsafe], below: 0.5}]")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.jsonl").write_text('{"url": "http://a/1.jpg"}\n' * 3)
    with pytest.raises(HarmonError, match=r"a\.jsonl has no field unsafe.*layouts\.0\.gates\.0\.field"):
        download_listed(Dataset(tmp_path / "d"), local_files(gated, tmp_path / "own"), DownloadSettings(), {})


def test_archives_whose_members_are_called_otherwise_are_an_error(tmp_path: Path) -> None:
    WITH_IMAGES["densefusion-1m"](tmp_path / "native")
    path = tmp_path / "native/images/DenseFusion-1M/000012.zip"
    with zipfile.ZipFile(path) as old:
        members = [(f"other/{info.filename}", old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            new.writestr(name, data)
    source = catalogue.source("densefusion-1m")
    with pytest.raises(HarmonError, match=r"DenseFusion-1M\.jsonl names none of .*000012\.zip.*other/.*images\.0\.at"):
        ingest(Dataset(tmp_path / "d"), local_files(source, tmp_path / "native"), IngestSettings(), {})
    mended = catalogue.source("densefusion-1m", settings=["layouts.0.fields.image=[url]"])
    with pytest.raises(HarmonError, match="names none of"):  # nor is another field of paths a way around it
        ingest(Dataset(tmp_path / "d"), local_files(mended, tmp_path / "native"), IngestSettings(), {})


def test_one_archive_of_several_that_is_called_otherwise_is_an_error(tmp_path: Path) -> None:
    """Half of the rows would be lost as images that are missing."""
    WITH_IMAGES["mgm-pretrain"](tmp_path)
    zips = tmp_path / "ALLaVA-4V/allava_laion/images.zip"
    zipped(zips, [(f"deeper/images/{n}.jpeg", picture(n)) for n in range(100)])
    accepted = {"mgm-pretrain": YES}
    with pytest.raises(HarmonError, match=r"names none of the images in ALLaVA-4V.*images\.zip.*images\.2\.at"):
        ingest(
            Dataset(tmp_path / "d"), local_files(catalogue.source("mgm-pretrain"), tmp_path), IngestSettings(), accepted
        )


def test_folders_whose_files_are_called_otherwise_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images/deeper").mkdir(parents=True)
    (tmp_path / "images/deeper/1.jpg").write_bytes(picture(1))
    (tmp_path / "mgm_pretrain.json").write_text(
        json.dumps([{"id": "1", "image": "images/1.jpg", "conversations": chat("x")}])
    )
    files = local_files(catalogue.source("mgm-pretrain"), tmp_path)
    with pytest.raises(HarmonError, match=r"names none of the images in images, such as 'images/deeper/1\.jpg'"):
        ingest(Dataset(tmp_path / "d"), files, IngestSettings(), {"mgm-pretrain": YES})


def test_a_family_that_is_absent_is_no_wrong_guess_though_it_comes_first(tmp_path: Path) -> None:
    WITH_IMAGES["sharegpt4v-pt"](tmp_path)
    path = tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json"
    rows = sorted(json.loads(path.read_text()), key=lambda row: row["id"], reverse=True)  # sam, llava, coco
    path.write_text(json.dumps(rows))
    (tmp_path / "sam/sa_000000.tar").unlink()
    dataset = Dataset(tmp_path / "d")
    ingest(dataset, local_files(catalogue.source("sharegpt4v-pt"), tmp_path), IngestSettings(), {"sharegpt4v-pt": YES})
    assert dataset.total_rows == 134 and dataset.rejects().num_rows == 66


def test_a_column_of_paths_in_place_of_bytes_is_an_error(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.string()), ("caption", pa.string())])
    parquet(tmp_path / "a.parquet", [{"image": "a.jpg", "caption": "x"}], schema)
    with pytest.raises(HarmonError, match=r"column image of .*a\.parquet is string"):
        ingest(Dataset(tmp_path / "d"), local_files(entry("own-parquet"), tmp_path), IngestSettings(), {})


# Damage and strangers


@pytest.mark.parametrize("cut", [1, 700, 20_000])
def test_a_cut_archive_is_an_error_and_not_a_short_one(cut: int, tmp_path: Path) -> None:
    WITH_IMAGES["own-webdataset"](tmp_path / "native")
    for path in (tmp_path / "native/a.tar", tmp_path / "native/b.tar.gz"):
        whole = path.read_bytes()
        path.write_bytes(whole[: max(600, len(whole) - cut - (10_240 if path.suffix == ".tar" else 0))])
        source = entry("own-webdataset")
        with pytest.raises(HarmonError, match=f"{path.name}.*fetch it anew"):
            only = local_files(source, tmp_path / "native", only=(path.name,))
            ingest(Dataset(tmp_path / "d"), only, IngestSettings(), {})
        path.write_bytes(whole)


def test_a_zip_bomb_and_a_lying_header_are_rejected(tmp_path: Path) -> None:
    images = tmp_path / "native/images/DenseFusion-1M"
    WITH_IMAGES["densefusion-1m"](tmp_path / "native")
    with zipfile.ZipFile(images / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("big.png", bytes(5 << 20))
        out.writestr("liar.png", bytes(5 << 20))
    data = bytearray((images / "bomb.zip").read_bytes())
    for place in range(len(data) - 46):  # the central directory says 100 bytes
        if data[place : place + 4] == b"PK\1\2" and data[place + 46 : place + 54] == b"liar.png":
            data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    (images / "bomb.zip").write_bytes(data)
    jsonl = tmp_path / "native/DenseFusion-1M/DenseFusion-1M.jsonl"
    with jsonl.open("a") as out:
        for name in ("big", "liar"):
            row = {"image_id": name, "url": "x", "caption": "x", "image_path": f"DenseFusion-1M/bomb/{name}.png"}
            out.write(json.dumps(row) + "\n")
    files = local_files(catalogue.source("densefusion-1m"), tmp_path / "native")
    dataset = Dataset(tmp_path / "d")
    ingest(dataset, files, IngestSettings(max_bytes=CAP), {})
    reasons = {row["row_id"]: row["reason"] for row in dataset.rejects().to_pylist()}
    assert (reasons["big"], reasons["liar"]) == ("too_large", "bad_archive")


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    """Records, links and members that climb, and links in archives and folders."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(1))
    root = tmp_path / "native"
    (root / "images").mkdir(parents=True)
    (root / "images/ok.jpg").write_bytes(picture(2))
    (root / "images/out.jpg").symlink_to(secret)
    paths = ["images/../../secret.jpg", str(secret), "images/out.jpg", "images/ok.jpg", "..", "images/a\0b.jpg"]
    rows = [{"id": str(n), "image": path, "conversations": chat("x")} for n, path in enumerate(paths)]
    (root / "mgm_pretrain.json").write_text(json.dumps(rows))
    dataset = Dataset(tmp_path / "d")
    ingest(dataset, local_files(catalogue.source("mgm-pretrain"), root), IngestSettings(), {"mgm-pretrain": YES})
    assert dataset.whole_table("source").column("row_id").to_pylist() == ["3"]
    assert set(dataset.rejects().column("reason").to_pylist()) == {"bad_path"}


def test_a_gzipped_record_file_with_nothing_in_it_is_an_error(tmp_path: Path) -> None:
    WITH_IMAGES["journeydb"](tmp_path)
    tar(tmp_path / "data/train/train_anno_realease_repath.jsonl.tgz", [("notes.txt", b"x")], "w:gz")
    with pytest.raises(HarmonError, match="holds no"):
        ingest(
            Dataset(tmp_path / "d"),
            local_files(catalogue.source("journeydb"), tmp_path),
            IngestSettings(),
            {"journeydb": YES},
        )
    (tmp_path / "data/train/train_anno_realease_repath.jsonl.tgz").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(HarmonError, match="damaged or cut"):
        ingest(
            Dataset(tmp_path / "d"),
            local_files(catalogue.source("journeydb"), tmp_path),
            IngestSettings(),
            {"journeydb": YES},
        )


# Rules


def judged(record: dict[str, Any], images: int = 1, **changes: Any) -> Sample | Reject:
    source = catalogue.source("mgm-pretrain").model_copy(update=changes)
    return sample_of(source, source.layouts[0], Native("f#0", record, images, b"x" if images else None))


def odd(**rules: Any) -> Any:
    return catalogue.source("mgm-pretrain").odd.model_copy(update=rules)


def test_the_rules_for_rows_that_are_not_one_image_with_one_text() -> None:
    pair = {"id": "a", "image": ["a", "b"], "conversations": chat("Both.", "<image> and <image>?")}
    first = judged(pair, 2, odd=odd(several_images="first"))
    assert isinstance(first, Sample) and first.note == "first_of_several_images"
    assert first.conversations == [{"role": "user", "text": "and ?"}, {"role": "assistant", "text": "Both."}]
    assert judged(pair, 2).reason == "several_images"  # type: ignore[union-attr]
    words = {"id": "a", "conversations": chat("Paris.", "Where?")}
    kept = judged(words, 0)
    assert isinstance(kept, Sample) and (kept.task, kept.note, kept.caption) == ("text", "text_row", None)
    assert judged(words, 0, odd=odd(text_only="reject")).reason == "text_only"  # type: ignore[union-attr]
    assert judged({"id": "a"}, 1).reason == "no_caption"  # type: ignore[union-attr]
    bare = judged({"id": "a"}, 1, odd=odd(image_only="keep"))
    assert isinstance(bare, Sample) and (bare.caption, bare.note) == (None, "no_caption")
    half = judged({"id": "a", "conversations": chat("\ud83d", "Why?")})
    assert isinstance(half, Reject) and half.reason == "bad_text"
    assert judged({"id": {"x": 1}, "conversations": chat("x")}).row_id == "f#0"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("a fox --ar 3:2 --v 5", "a fox"),
        ("https://x.example/a.png a fox, dawn <lora:y> --niji", "a fox, dawn"),
        ("state-of-the-art fox -- really", "state-of-the-art fox -- really"),
        ("--ar 3:2", None),
        ("a < b > c", "a < b > c"),
        ("--tile waves of paper", "waves of paper"),  # a flag that takes nothing
        ("an owl --niji reading --s 750 a book", "an owl reading a book"),
        ("an owl --v 5.2 --style raw reading", "an owl reading"),
        ("an owl --ar 3:2, reading", "an owl , reading"),
        ("an owl --no text, hats --ar 16:9", "an owl"),
        ("an owl \u2014ar 3:2 at night", "an owl at night"),
        ("an owl \u2014no one knew it \u2014 at night", "an owl \u2014no one knew it \u2014 at night"),
        ("an owl --wise old bird", "an owl --wise old bird"),  # no flag that anybody knows
        ("two --version of it", "two of it"),
    ],
)
def test_midjourney_prompts_lose_what_is_no_word(said: str, left: str | None) -> None:
    assert cleaned(said, "midjourney") == left


def test_the_kind_of_a_caption_goes_by_the_path_of_its_image() -> None:
    kinds = {}
    for image in ("images/00453/004539375.jpg", "allava_laion/images/7.jpeg", ["images/1/2.jpg"]):
        sample = judged({"id": "a", "image": image, "conversations": chat("A tram.")})
        assert isinstance(sample, Sample)
        kinds[str(image)] = sample.caption_kind
    assert list(kinds.values()) == ["short", "dense", "short"]
    text = judged({"id": "a", "conversations": chat("Paris.", "Where?")}, images=0)
    assert isinstance(text, Sample) and text.caption_kind is None


def test_only_prompts_are_cleaned_and_an_empty_field_gives_way_to_the_next() -> None:
    source = catalogue.source("journeydb")

    def caption(record: dict[str, Any]) -> str | None:
        sample = sample_of(source, source.layouts[0], Native("f#0", {"img_path": "./1/a.jpg"} | record, 1, b"x"))
        return sample.caption if isinstance(sample, Sample) else None

    words = "A sign says <open> --no entry"
    assert caption({"Task2": {"Caption": words}, "prompt": "a sign --v 5"}) == words
    assert caption({"Task2": {"Caption": " "}, "prompt": "a sign --v 5"}) == "a sign"
    assert caption({"Task2": {"Caption": ""}, "prompt": "--v 5"}) is None


def test_preambles_are_cut_off_once() -> None:
    assert (
        cleaned(" This image displays: a barn. This image displays: it.", "preamble")
        == "a barn. This image displays: it."
    )
    assert cleaned("\n", "none") is None


def test_class_names_are_the_first_all_or_one_drawn_by_row(tmp_path: Path) -> None:
    WITH_IMAGES["imagenet-1k"](tmp_path / "native")
    drawn: dict[str, set[str]] = {}
    for how in ("first", "all", "random"):
        source = catalogue.source("imagenet-1k", settings=[f"layouts.0.class_name={how}"])
        dataset = Dataset(tmp_path / how)
        ingest(dataset, local_files(source, tmp_path / "native"), IngestSettings(), {source.name: YES})
        drawn[how] = set(dataset.whole_table("source").column("caption").to_pylist())
    assert drawn["first"] == {"tench", "goldfish", "crane"}
    assert drawn["all"] == {"tench, Tinca tinca", "goldfish, Carassius auratus", "crane"}
    assert drawn["random"] == {"tench", "Tinca tinca", "goldfish", "Carassius auratus", "crane"}


def test_imagenet_as_class_folders_takes_its_words_from_wordnet(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n02012849"):
        (tmp_path / "native/train" / wnid).mkdir(parents=True)
        (tmp_path / "native/train" / wnid / f"{wnid}_1.JPEG").write_bytes(picture(1))
    source = catalogue.source("imagenet-1k")
    dataset = Dataset(tmp_path / "d")
    ingest(dataset, local_files(source, tmp_path / "native"), IngestSettings(), {source.name: YES})
    rows = dataset.whole_table("source").to_pylist()
    assert [(row["row_id"], row["caption"]) for row in rows] == [
        ("train/n01440764/n01440764_1.JPEG", "tench"),
        ("train/n02012849/n02012849_1.JPEG", "crane"),
    ]
    (tmp_path / "native/LOC_synset_mapping.txt").write_text("n01440764 a fish, any\nn02012849 a bird\n")
    own = Dataset(tmp_path / "own")
    ingest(own, local_files(source, tmp_path / "native"), IngestSettings(), {source.name: YES})
    assert own.whole_table("source").column("caption").to_pylist() == ["a fish", "a bird"]


# Files


def test_patterns_stop_at_slashes_and_take_brackets_as_they_are() -> None:
    def fits(glob: str, name: str) -> bool:
        return bool(glob_pattern(glob).fullmatch(name))

    assert fits("*/*.parquet", "aokvqa(cauldron,llava_format)/train-0.parquet")
    assert not fits("*.tar", "a/b.tar") and fits("**/*.tar", "a/b.tar") and fits("**/*.tar", "b.tar")
    assert fits("a[1].tar", "a[1].tar") and not fits("a[1].tar", "a1.tar")


def test_a_folder_without_the_files_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(HarmonError, match=r"has no files of pd12m: it is read from \*\*/\*\.parquet"):
        local_files(catalogue.source("pd12m"), tmp_path)
    with pytest.raises(ConfigurationError, match="made by a recipe's own web"):
        local_files(catalogue.source("scenes"), tmp_path)
    with pytest.raises(HarmonError, match="no folder"):
        local_files(catalogue.source("pd12m"), tmp_path / "nowhere")


def test_a_changed_file_is_other_work_and_an_untouched_one_is_not_hashed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.ingest import ingest_step
    from pipelines.readers import files as module

    WITH_IMAGES["own-parquet"](tmp_path / "native")
    source = entry("own-parquet")
    before = ingest_step(local_files(source, tmp_path / "native"), IngestSettings()).key
    with monkeypatch.context() as patch:
        patch.setattr(module, "file_sha256", lambda path: pytest.fail(f"{path} is hashed again"))
        assert ingest_step(local_files(source, tmp_path / "native"), IngestSettings()).key == before
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    parquet(tmp_path / "native/deep/part.parquet", [{"image": picture(1), "caption": "x"}], schema)
    assert ingest_step(local_files(source, tmp_path / "native"), IngestSettings()).key != before


def test_images_in_folders_are_one_digest_of_the_step_and_any_change_is_another(tmp_path: Path) -> None:
    WITH_IMAGES["own-folder"](tmp_path / "native")
    (loose,) = local_files(entry("own-folder"), tmp_path / "native").checksums()
    assert loose[0].endswith(" loose files") and int(loose[0].split()[0]) > 200
    image = next((tmp_path / "native").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"x")
    (changed,) = local_files(entry("own-folder"), tmp_path / "native").checksums()
    image.rename(image.with_name("renamed.jpg"))
    (renamed,) = local_files(entry("own-folder"), tmp_path / "native").checksums()
    assert len({loose[1], changed[1], renamed[1]}) == 3
    WITH_IMAGES["llava-recap-cc3m"](tmp_path / "tables")
    told = local_files(entry("llava-recap-cc3m"), tmp_path / "tables").checksums()
    assert told and all(name.endswith(".parquet") for name, _ in told)


def test_a_table_that_is_one_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.layouts import UrlTable
    from pipelines.readers import links

    layout = entry("own-links").layouts[0]
    assert isinstance(layout, UrlTable)
    monkeypatch.setattr(links, "MAX_RECORD", 1000)
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_text("url," + "x" * 5000)
        with pytest.raises(HarmonError, match="a line of more than 1000"):
            list(links.LinkReader(tmp_path, [name], layout).rows(name))


def test_members_that_come_twice_are_told(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.txt", b"two"), ("b.jpg", picture(2)), ("b.txt", b"ok")]
    tar(tmp_path / "native/x.tar", members)
    dataset = Dataset(tmp_path / "d")
    commit = ingest(dataset, local_files(entry("own-webdataset"), tmp_path / "native"), IngestSettings(), {})
    assert commit.rejected == {"duplicate_member": 1} and commit.rows_out == 1


def test_a_csv_with_odd_quoting_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    from pipelines.layouts import UrlTable
    from pipelines.readers.links import LinkReader

    layout = entry("own-links").layouts[0]
    assert isinstance(layout, UrlTable)
    (tmp_path / "a.csv").write_text('url,x\nhttp://a/1.jpg,"b"c\n')
    with pytest.raises(HarmonError, match=r"a\.csv, line 2"):
        list(LinkReader(tmp_path, ["a.csv"], layout).rows("a.csv"))
    with (tmp_path / "b.tsv").open("w", newline="") as out:
        csv.writer(out, delimiter="\t").writerows([["url"], ["http://a/é, b.jpg"]])
    assert [row.record for row in LinkReader(tmp_path, ["b.tsv"], layout).rows("b.tsv")] == [
        {"url": "http://a/é, b.jpg"}
    ]


def test_rows_of_an_own_entry_are_named_by_file(tmp_path: Path) -> None:
    """`replace` in a copy of an entry is how a user makes one; its name enters the keys."""
    WITH_IMAGES["own-parquet"](tmp_path / "native")
    mine: Source = entry("own-parquet").model_copy(update={"name": "cats"})
    files = replace(local_files(entry("own-parquet"), tmp_path / "native"), source=mine)
    dataset = Dataset(tmp_path / "cats")
    ingest(dataset, files, IngestSettings(), {})
    row = dataset.whole_table("source").to_pylist()[0]
    assert (row["source"], row["row_id"]) == ("cats", "deep/part.parquet#0") and dataset.total_rows == GOOD
