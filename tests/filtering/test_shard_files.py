"""The shards of a selection: the same bytes whoever writes them and whatever is killed, and what stands in them."""

import io
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filtering.buckets import BUCKET, Buckets
from filtering.captions import CHOSEN
from filtering.clarity import GROUP, score_clarity
from filtering.cut import Take
from filtering.geometry import Geometry
from filtering.header import write_headers
from filtering.phash import write_hashes
from filtering.resize import Resize
from filtering.rules import Addresses, Captions, FileTypes, HashList, Threshold
from filtering.select import select
from filtering.selection import Selection
from filtering.shuffle import PLACE, ROW, Reader, Writer, is_written
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from tests.filtering import victims
from tests.filtering.pictured import Row, encoded, jpeg, write_captions, write_rows

KILLS = 100 if os.environ.get("HARMON_SOAK") else 10
CAPTION = "caption.rewrite-v1-tiny-00000000"
RULES = Selection(
    geometry=Geometry(min_side=64),
    take=Take(group=GROUP, column="clarity", keep="60%"),
    carry=(CAPTION,),
    buckets=Buckets(resolutions=(64, 128), multiple=16),
    caption_shares={"source": 1, CAPTION: 3},
    rows_per_shard=5,
    seed=11,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("inputs")
    sizes = [(128, 128), (160, 90), (90, 160), (50, 300)]
    first = [Row(f"one {n}", n, sizes[n % 4]) for n in range(40)]
    second = [Row(f"two {n}", 100 + n, sizes[n % 3]) for n in range(25)] + [Row("words", text=True)]
    found = [write_rows(folder / "one", first, 7), write_rows(folder / "two", second, 6)]
    for dataset in found:
        score_clarity(dataset)
        write_captions(dataset, CAPTION)
    return found


@pytest.fixture(scope="module")
def chosen(inputs: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    target = Dataset(tmp_path_factory.mktemp("target") / "corpus")
    select(inputs, target, RULES)
    return target


def files(dataset: Dataset) -> dict[str, str]:
    head = dataset.head
    assert head
    return {entry.path: entry.sha256 for entry in head.files}


def test_two_workers_write_the_same_bytes_as_one(inputs: list[Dataset], chosen: Dataset, tmp_path: Path) -> None:
    target, told = Dataset(tmp_path / "corpus"), []
    select(inputs, target, RULES, told.append, workers=2)
    assert files(target) == files(chosen)
    assert target.head
    assert chosen.head
    assert target.head.content_hash == chosen.head.content_hash
    assert told[-1].shards_done == len(chosen.shard_numbers)
    assert audit(target, deep=True).sound


def test_a_selection_killed_anywhere_and_run_again_is_the_same(
    inputs: list[Dataset], chosen: Dataset, tmp_path: Path
) -> None:
    paths = [Path(str(dataset.root)) for dataset in inputs]
    began = time.monotonic()
    assert victims.run(paths, tmp_path / "timed", RULES) == 0
    seconds = time.monotonic() - began
    draw, kills, rounds = random.Random(5), 0, 0
    while kills < KILLS:
        rounds += 1
        workers = 2 if rounds % 3 == 0 else 1
        root = tmp_path / f"round {rounds}"
        while kills < KILLS:
            at_a_call = kills % 2 == 0
            moment = {"die_at": draw.randint(1, 60)} if at_a_call else {"after": draw.uniform(0.01, seconds)}
            status = victims.run(paths, root, RULES, workers=workers, **moment)  # type: ignore[arg-type]
            assert status in (0, -9)
            if status == 0:
                break
            kills += 1
        assert victims.run(paths, root, RULES, workers=workers) == 0
        assert files(Dataset(root)) == files(chosen)
        assert audit(Dataset(root), deep=True).sound
        assert not (root / ".work").exists()


def test_a_selection_whose_worker_is_killed_says_so_and_goes_on_when_run_again(
    inputs: list[Dataset], tmp_path: Path
) -> None:
    """The parent outlives its worker, whose shard is left half done."""
    paths = [Path(str(dataset.root)) for dataset in inputs]
    one = RULES.model_copy(update={"rows_per_shard": 1})  # many shards, of which some are being written at any moment
    expected = Dataset(tmp_path / "expected")
    select(inputs, expected, one)
    assert victims.run(paths, tmp_path / "corpus", one, workers=2, receipts=3) == 3
    assert victims.run(paths, tmp_path / "corpus", one, workers=2) == 0
    assert files(Dataset(tmp_path / "corpus")) == files(expected)
    assert audit(Dataset(tmp_path / "corpus"), deep=True).sound
    assert not (tmp_path / "corpus" / ".work").exists()


def test_the_target_share_is_met_and_the_best_stay(inputs: list[Dataset], chosen: Dataset) -> None:
    scores = [row for data in inputs for row in data.whole_table(GROUP).to_pylist() if row["clarity"] is not None]
    geometry = {row["key"] for data in inputs for row in data.whole_table("source").to_pylist() if row["width"]}
    small = {r["key"] for d in inputs for r in d.whole_table("source").to_pylist() if r["width"] and r["width"] < 64}
    passing = sorted((row["clarity"] for row in scores if row["key"] in geometry - small), reverse=True)
    kept = [row["clarity"] for row in chosen.whole_table(GROUP).to_pylist() if row["clarity"] is not None]
    assert len(kept) == round(0.6 * len(passing))
    assert sorted(kept, reverse=True) == passing[: len(kept)]
    below = [row for row in chosen.rejects().to_pylist() if row["reason"] == "below_cut"]
    assert len(below) == len(passing) - len(kept)
    assert below[0]["detail"].endswith(f" < the cut, {np.float32(min(kept))!s}")


def test_quotas_hold_by_source(inputs: list[Dataset], tmp_path: Path) -> None:
    target = Dataset(tmp_path / "corpus")
    take = Take(group=GROUP, column="clarity", quotas={"one": 3, "two": "40%"})
    select(inputs, target, Selection(geometry=Geometry(min_side=1), take=take))
    sources = Counter(row["source"] for row in target.whole_table("source").to_pylist() if row["task"] != "text")
    assert sources == {"one": 3, "two": 10}


def test_captions_are_chosen_by_share_and_stand_in_the_view(chosen: Dataset, tmp_path: Path) -> None:
    table = chosen.whole_table(CHOSEN).to_pylist()
    rows = {row["key"]: row for row in chosen.whole_table("source").to_pylist()}
    rewritten = {row["key"]: row["text"] for row in chosen.whole_table(CAPTION).to_pylist()}
    for row in table:
        if rows[row["key"]]["task"] != "text":
            expected = rewritten[row["key"]] if row["version"] == CAPTION else rows[row["key"]]["caption"]
            assert row["text"] == expected
            assert row["version"] == "source" if rewritten[row["key"]] is None else row["version"]
    many = write_rows(tmp_path / "many", [Row(f"r{n}") for n in range(600)], 600)
    write_captions(many, CAPTION)
    rules = Selection(geometry=Geometry(min_side=1), caption_shares={"source": 1, CAPTION: 3}, rows_per_shard=600)
    from filtering.captions import chosen_captions

    found = chosen_captions(many.whole_table("source"), {CAPTION: many.whole_table(CAPTION)}, rules.caption_shares, 0)
    there = [row["version"] for n, row in enumerate(found.to_pylist()) if n % 3 != 2]
    assert there.count(CAPTION) / len(there) == pytest.approx(0.75, abs=0.05)


def test_the_view_says_caption_score_bucket_and_where_it_came_from(chosen: Dataset, inputs: list[Dataset]) -> None:
    shard = chosen.shard_numbers[0]
    names = [dataset.name for dataset in inputs]
    buckets = {row["key"]: [row["width"], row["height"]] for row in chosen.table(BUCKET, shard).to_pylist()}
    scores = {row["key"]: row for row in chosen.table(GROUP, shard).to_pylist()}
    captions = {row["key"]: row for row in chosen.table(CHOSEN, shard).to_pylist()}
    images = chosen.images(shard)
    for row in range(len(images)):
        image = images.read(row)
        view = image.view
        assert view["from"]["dataset"] in names
        assert view["bucket"] == buckets[image.key]
        assert view["scores"][GROUP]["clarity"] == pytest.approx(scores[image.key]["clarity"])
        assert (view["caption"], view["caption_version"]) == (
            captions[image.key]["text"],
            captions[image.key]["version"],
        )


def test_a_resize_makes_large_pictures_smaller_and_leaves_the_others_alone(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("large", 1, (300, 200)), Row("small", 2, (90, 100))])
    target = Dataset(tmp_path / "target")
    select([dataset], target, Selection(geometry=Geometry(min_side=1), resize=Resize(shorter_side=100)))
    rows = {row["row_id"]: row for row in target.whole_table("source").to_pylist()}
    images = target.images(0)
    large, small = (images.find(rows[name]["key"]) for name in ("large", "small"))
    assert large
    assert small
    assert Image.open(io.BytesIO(large.data)).size == (150, 100) == (rows["large"]["width"], rows["large"]["height"])
    assert rows["large"]["bytes"] == len(large.data)
    assert small.data == jpeg(2, (90, 100))
    assert audit(target, deep=True, decode=1.0).sound


def test_what_is_said_of_a_picture_that_was_made_smaller_is_true_of_it(tmp_path: Path) -> None:
    sizes = {"large": (300, 200), "webp": (400, 200), "small": (90, 100)}
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3, sizes["webp"]))).save(out, "WEBP")
    rows = [
        Row(name, n, size, out.getvalue() if name == "webp" else None) for n, (name, size) in enumerate(sizes.items())
    ]
    dataset = write_rows(tmp_path / "toys", rows)
    write_headers(dataset)
    score_clarity(dataset)
    at_first, then = Dataset(tmp_path / "first"), Dataset(tmp_path / "then")
    buckets = Buckets(resolutions=(96, 192), multiple=16)
    threshold = Threshold(group="header", column="width", at_least=1)
    select([dataset], at_first, Selection(geometry=Geometry(min_side=1), buckets=buckets, thresholds=(threshold,)))
    rules = Selection(
        geometry=Geometry(min_side=1), buckets=buckets, thresholds=(threshold,), resize=Resize(shorter_side=100)
    )
    select([at_first], then, rules)
    assert "header" in at_first.groups()
    assert "header" not in then.groups()
    bucket = {row["key"]: [row["width"], row["height"]] for row in then.whole_table(BUCKET).to_pylist()}
    seen = 0
    for row in then.whole_table("source").to_pylist():
        image = then.images(0).find(row["key"])
        assert image
        picture = Image.open(io.BytesIO(image.data))
        size = np.array([float(side) for side in picture.size])[:, None]
        assert image.view["bucket"] == bucket[row["key"]] == buckets.assign(*size)[0].tolist()
        assert (row["width"], row["height"]) == picture.size
        if "width" in image.view:
            seen += 1
            assert (image.view["width"], image.view["height"]) == picture.size
        if row["row_id"] != "small":
            assert row["bytes"] == len(image.data)
            assert (row["ext"], image.extension, picture.format) == ("jpg", "jpg", "JPEG")
            assert "header" not in image.view.get("scores", {})
    assert seen == 3
    with pytest.raises(ValueError, match="hash would be false"):
        Selection(resize=Resize(shorter_side=100), carry=("hash", "clarity"))


def test_a_picture_that_cannot_be_made_smaller_is_a_clear_error(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("bad", data=b"<html>")])
    with pytest.raises(HarmonError, match="cannot be made smaller"):
        select(
            [dataset],
            Dataset(tmp_path / "t"),
            Selection(geometry=Geometry(min_side=1), resize=Resize(shorter_side=100)),
        )


@pytest.mark.parametrize("resize", [False, True])
def test_a_target_size_is_that_of_the_pictures_that_stay_as_they_are_written(tmp_path: Path, resize: bool) -> None:
    """Of 120 pictures a third is large, and leaves or is made smaller."""
    draw = np.random.default_rng(0)
    sizes = [(256, 192) if n % 3 == 0 else (128, 96) for n in range(120)]
    noise = [encoded(draw.integers(0, 256, (height, width, 3))) for width, height in sizes]
    rows = [Row(f"r{n}", n, size, data) for n, (size, data) in enumerate(zip(sizes, noise, strict=True))]
    dataset, target = write_rows(tmp_path / "toys", rows, 40), Dataset(tmp_path / "target")
    geometry = Geometry(min_side=1, max_pixels=None if resize else 128 * 96)
    small = Resize(shorter_side=96) if resize else None
    select([dataset], target, Selection(geometry=geometry, shard_bytes=1 << 20, resize=small))
    assert target.head
    tars = [entry.bytes for entry in target.head.files if entry.group == "images"]
    assert len(tars) > 1
    assert all(abs(one / (1 << 20) - 1) < 0.1 for one in tars[:-1])


def test_every_rule_says_why_a_row_left(tmp_path: Path) -> None:
    rows = [
        Row(name, n, (200, 200)) for n, name in enumerate(("good", "worse", "host", "path", "listed", "hashed", "wide"))
    ]
    rows[6] = Row("wide", 6, (500, 200))
    dataset = write_rows(tmp_path / "toys", rows)
    write_headers(dataset)
    write_hashes(dataset)
    source = {row["row_id"]: row for row in dataset.whole_table("source").to_pylist()}
    md5 = {row["key"]: row["md5"] for row in dataset.whole_table("hash").to_pylist()}
    (tmp_path / "bad.txt").write_text(f"# known\n{source['listed']['sha256']}\n{md5[source['hashed']['key']]}  # md5\n")
    rules = Selection(
        geometry=Geometry(min_side=1),
        addresses=Addresses(deny=("nowhere.example",), deny_patterns=(r"/path$",)),
        hash_lists=(HashList(file=tmp_path / "bad.txt", reason="abuse"),),
        thresholds=(Threshold(group="header", column="aspect", at_most=2.0),),
        where="row_id != 'host'",
        captions=Captions(min_characters=2),
    )
    target = Dataset(tmp_path / "target")
    select([dataset], target, rules)
    said = {row["row_id"]: (row["reason"], row["detail"]) for row in target.rejects().to_pylist()}
    assert said == {
        "path": ("address", "http://127.0.0.1/path"),
        "listed": ("abuse", "sha256 stands in bad.txt"),
        "hashed": ("abuse", "md5 stands in bad.txt"),
        "wide": ("high_header", "aspect 2.500 > 2"),
        "host": ("condition", "not row_id != 'host'"),
    }


def test_file_types_domains_and_caption_lengths_are_rules(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("b", 1)])
    from filtering.plan import plan

    assert plan([dataset], Selection(geometry=Geometry(min_side=1), file_types=FileTypes())).counts["file_type"] == 2
    outside = Selection(geometry=Geometry(min_side=1), addresses=Addresses(allow=("example.org",)))
    assert plan([dataset], outside).counts["domain"] == 2
    inside = Selection(geometry=Geometry(min_side=1), addresses=Addresses(allow=("127.0.0.1",)))
    assert plan([dataset], inside).kept == 2
    long = Selection(geometry=Geometry(min_side=1), captions=Captions(max_characters=3))
    assert plan([dataset], long).counts["long_caption"] == 2


@pytest.mark.parametrize("line", ["xyz", "ab" * 10, "pdq:" + "0" * 63])
def test_a_hash_list_with_something_else_in_it_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"{'0' * 64}\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        assert HashList(file=tmp_path / "list").digests


def test_the_contents_of_a_list_decide_the_step_and_its_place_does_not(tmp_path: Path) -> None:
    from filtering.select import select_step

    dataset = write_rows(tmp_path / "toys", [Row("a")])
    keys = []
    for name, text in (("one", "0" * 64), ("two", "0" * 64), ("three", "1" * 64)):
        (tmp_path / name).write_text(text)
        keys.append(select_step([dataset], Selection(hash_lists=(HashList(file=tmp_path / name),))).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("resolutions", "said"), [((), "name a resolution"), ((256, 20), "about 20 x 20 pixels")])
def test_buckets_that_cannot_be_made_are_refused(resolutions: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Buckets(resolutions=resolutions)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_bucket_has_the_nearest_aspect_and_never_enlarges_where_it_can_be_helped(width: int, height: int) -> None:
    buckets = Buckets(resolutions=(256, 512))
    found = buckets.assign(np.array([float(width)]), np.array([float(height)]))[0]
    for resolution, sizes in buckets.sizes.items():
        assert (np.abs(np.sqrt(sizes.prod(axis=1)) / resolution - 1) < 0.13).all()
        assert (sizes % 32 == 0).all()
        if any((sizes == found).all(axis=1)):
            wrong = np.abs(np.log(sizes[:, 0] / sizes[:, 1]) - np.log(width / height))
            assert np.abs(np.log(found[0] / found[1]) - np.log(width / height)) == pytest.approx(wrong.min())
            assert resolution == 256 or (width >= found[0] and height >= found[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 50))
def test_the_external_shuffle_gives_back_every_row_in_order(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], piece: int, step: int
) -> None:
    folder = tmp_path_factory.mktemp("shuffle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filtering.shuffle.WAITING", 400)
        patch.setattr("filtering.shuffle.PARTITION", 200)
        writer = Writer(folder, len(places))
        for start in range(0, len(places), piece):
            some = np.array(places[start : start + piece], np.uint64)
            writer.add(pa.table({PLACE: some, ROW: np.arange(start, start + len(some))}))
        assert not is_written(folder)
        writer.close()
    reader, found = Reader(folder), []
    for start in range(0, len(places), step):
        table = reader.rows(start, start + step)
        assert table is not None
        found += list(zip(table[PLACE].to_pylist(), table[ROW].to_pylist(), strict=True))
    assert found == sorted((place, row) for row, place in enumerate(places))
    assert reader.rows(len(places), len(places) + 5) is None


def test_a_partition_that_grew_too_large_is_split_however_wide_its_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows are narrow and few are announced, so that one partition is begun for all."""
    monkeypatch.setattr("filtering.shuffle.WAITING", 1 << 12)
    monkeypatch.setattr("filtering.shuffle.PARTITION", 1 << 12)
    draw, writer = np.random.default_rng(0), Writer(tmp_path / "shuffle", 10)
    for start in range(0, 20_000, 500):
        places = draw.integers(0, 2**64, 500, np.uint64)
        rows = {PLACE: places, ROW: np.arange(start, start + 500), "text": ["x" * (100 if start else 1)] * 500}
        writer.add(pa.table(rows))
    writer.close()
    parts = list((tmp_path / "shuffle").glob("*.arrow"))
    assert len(parts) > 256
    for part in parts:
        with pa.OSFile(str(part)) as source:
            assert pa.ipc.open_file(source).read_all().nbytes <= 3 << 12
    table = Reader(tmp_path / "shuffle").rows(0, 20_000)
    assert table is not None
    found = table[PLACE].to_numpy()
    assert (found == np.sort(found)).all()
    assert sorted(table[ROW].to_pylist()) == list(range(20_000))


def test_partitions_are_on_the_disk_before_their_list_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    writer = Writer(tmp_path / "shuffle", 3)
    writer.add(pa.table({PLACE: np.arange(3, dtype=np.uint64), ROW: np.arange(3)}))
    monkeypatch.setattr("os.fsync", noted)
    writer.close()
    assert synced == ["000.arrow", "parts.part", "shuffle"]


def test_a_stock_webdataset_reader_and_data_loader_train_from_the_shards(chosen: Dataset) -> None:
    """The documented example (docs/filtering.md) as it stands there."""
    from tests.filtering.stock_loader import train

    losses = train([chosen.images(shard).where for shard in chosen.shard_numbers], steps=30)
    assert losses[-1] < losses[0]
    stock = webdataset.WebDataset([chosen.images(n).where for n in chosen.shard_numbers], shardshuffle=False)
    keys = [sample["__key__"] for sample in stock]
    pictures = [row["key"] for row in chosen.whole_table("source").to_pylist() if row["task"] != "text"]
    assert keys == pictures
    assert all(json.loads(sample["json"])["caption"] for sample in stock)
