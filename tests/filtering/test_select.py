"""Selection: every row stays or says why, survivors are shuffled as a whole, and bytes are never touched."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filtering.clarity import GROUP, score_clarity
from filtering.geometry import Geometry
from filtering.rules import Threshold
from filtering.select import select, select_step
from filtering.selection import Selection
from filtering.shuffle import places_of
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.scenes import make_scene
from tests.filtering.pictured import Row, jpeg, write_captions, write_rows

CAPTIONS = "caption.rewrite-v1-tiny-00000000"
CLEAN = [index for index in range(60) if make_scene(7, index).finish == "clean"]
BLURRED = next(index for index in range(200) if make_scene(7, index).finish == "blurred")
RULES = Selection(
    geometry=Geometry(min_side=64),
    thresholds=(Threshold(group=GROUP, column="clarity", at_least=0.25),),
    carry=(CAPTIONS,),
    rows_per_shard=4,
    seed=3,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Photographs without rewritten captions, and scenes with them, each with rows that should leave."""
    return write_inputs(tmp_path_factory.mktemp("data"))


def write_inputs(folder: Path) -> list[Dataset]:
    photographs = [Row(f"photo {n}", CLEAN[n], (160, 120)) for n in range(6)]
    photographs.insert(2, Row("banner", CLEAN[6], (910, 100)))
    photographs.append(Row("same again", CLEAN[1], (160, 120)))
    scenes = [Row(f"scene {n}", CLEAN[10 + n]) for n in range(7)]
    scenes[3:3] = [Row("words", text=True), Row("blurred", BLURRED), Row("thumbnail", CLEAN[20], (63, 80))]
    scenes.append(Row("a photo's copy", CLEAN[0], (160, 120)))
    scenes.append(Row("not a picture", data=b"<html>", size=(128, 128)))
    found = [write_rows(folder / "photographs", photographs), write_rows(folder / "scenes", scenes)]
    write_captions(found[1], CAPTIONS)
    for dataset in found:
        score_clarity(dataset)
    return found


@pytest.fixture(scope="module")
def chosen(inputs: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    target = Dataset(tmp_path_factory.mktemp("data") / "corpus")
    select(inputs, target, RULES)
    return target


def test_every_row_that_leaves_says_why_with_what_was_measured(chosen: Dataset) -> None:
    rejects = {row["row_id"]: (row["reason"], row["detail"]) for row in chosen.rejects().to_pylist()}
    assert rejects.pop("banner") == ("extreme_aspect", "aspect 9.1 > 3.0")
    assert rejects.pop("thumbnail") == ("too_small", "shorter side 63 < 64")
    assert rejects.pop("not a picture") == ("unscored", "clarity clarity: undecodable")
    assert rejects["blurred"][0] == "low_clarity"
    assert rejects.pop("blurred")[1].endswith("< 0.25")
    assert {name: reason for name, (reason, _) in rejects.items()} == {
        "same again": "duplicate",
        "a photo's copy": "duplicate",
    }


def test_rows_are_conserved_and_the_dataset_is_sound(chosen: Dataset, inputs: list[Dataset]) -> None:
    assert chosen.head
    commit, total = chosen.head, sum(dataset.total_rows for dataset in inputs)
    assert commit.rows_in == total == commit.rows_out + sum(commit.rejected.values())
    assert chosen.total_rows == commit.rows_out == 14
    assert audit(chosen, deep=True).sound


def test_the_first_of_equal_images_stays(chosen: Dataset) -> None:
    names = set(chosen.whole_table("source").column("row_id").to_pylist())
    assert {"photo 0", "photo 1"} <= names


def test_text_passes_without_image_rules(chosen: Dataset) -> None:
    rows = [row for row in chosen.whole_table("source").to_pylist() if row["task"] == "text"]
    assert [row["row_id"] for row in rows] == ["words"]
    assert rows[0]["conversations"] == [{"role": "user", "text": "Hello"}]


def test_image_bytes_are_untouched_and_found_by_a_tar_reader(chosen: Dataset) -> None:
    wanted = {f"photo {n}": jpeg(CLEAN[n], (160, 120)) for n in range(6)}
    found = {}
    for shard in chosen.shard_numbers:
        rows = {row["key"]: row["row_id"] for row in chosen.table("source", shard).to_pylist()}
        with tarfile.open(chosen.images(shard).where) as tar:
            found |= {rows[m.name[:32]]: read(tar, m) for m in tar.getmembers() if m.name.endswith("jpg")}
    assert {name: found[name] for name in wanted} == wanted


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member) or io.BytesIO()
    return stream.read()


def test_shards_have_the_asked_size_and_mix_the_datasets(chosen: Dataset) -> None:
    assert [chosen.rows(shard) for shard in chosen.shard_numbers] == [4, 4, 4, 2]
    sources = [chosen.table("source", shard).column("source").to_pylist() for shard in chosen.shard_numbers]
    assert sum(len(set(names)) == 2 for names in sources) >= 2


def test_captions_go_along_and_are_null_where_a_dataset_has_none(chosen: Dataset) -> None:
    source, captions = chosen.whole_table("source").to_pylist(), chosen.whole_table(CAPTIONS).to_pylist()
    for row, caption in zip(source, captions, strict=True):
        assert row["key"] == caption["key"]
        if row["source"] == "photographs":
            assert (caption["text"], caption["status"], caption["reason"]) == (None, "failed", "not_made")
        elif caption["status"] == "ok":
            assert caption["text"] == f"about {row['row_id']}"
    assert {row["reason"] for row in captions} == {None, "empty", "not_made"}


def test_the_view_beside_an_image_holds_its_captions(chosen: Dataset) -> None:
    images, captions = chosen.images(0), chosen.table(CAPTIONS, 0).to_pylist()
    for row in captions:
        image = images.find(row["key"])
        if image is not None:
            assert image.view.get("captions", {}) == ({CAPTIONS: row["text"]} if row["text"] else {})
            assert image.view["caption"]


def test_scores_stay_with_their_rows(chosen: Dataset, inputs: list[Dataset]) -> None:
    before = {row["key"]: row["clarity"] for data in inputs for row in data.whole_table(GROUP).to_pylist()}
    after = {row["key"]: row["clarity"] for row in chosen.whole_table(GROUP).to_pylist()}
    assert all(before[key] == value for key, value in after.items())


def test_the_same_selection_is_done_once_and_repeats_to_the_byte(
    chosen: Dataset, inputs: list[Dataset], tmp_path: Path
) -> None:
    assert select(inputs, chosen, RULES) == chosen.head
    again = select(inputs, Dataset(tmp_path / "corpus"), RULES)
    assert chosen.head
    assert again.content_hash == chosen.head.content_hash


def test_another_seed_keeps_the_same_rows_in_another_order(
    chosen: Dataset, inputs: list[Dataset], tmp_path: Path
) -> None:
    other = Dataset(tmp_path / "corpus")
    select(inputs, other, RULES.model_copy(update={"seed": 4}))
    orders = [data.whole_table("source").column("key").to_pylist() for data in (chosen, other)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_rule_changes_the_step_key_and_an_unread_group_does_not(inputs: list[Dataset], tmp_path: Path) -> None:
    key = select_step(inputs, RULES).key
    stricter = RULES.model_copy(update={"geometry": Geometry(min_side=65)})
    assert select_step(inputs, stricter).key != key
    copies = write_inputs(tmp_path)
    write_captions(copies[0], "caption.another-v1-tiny-00000000")
    assert select_step(copies, RULES).key == key


def test_a_group_that_no_dataset_has_is_refused(inputs: list[Dataset], tmp_path: Path) -> None:
    lacking = RULES.model_copy(update={"carry": ("caption.none",)})
    with pytest.raises(ConfigurationError, match=r"caption\.none"):
        select(inputs, Dataset(tmp_path / "corpus"), lacking)


def test_a_threshold_on_a_dataset_without_its_scores_is_refused(tmp_path: Path) -> None:
    bare = write_rows(tmp_path / "bare", [Row("a", CLEAN[0])])
    scored = write_rows(tmp_path / "scored", [Row("b", CLEAN[1])])
    score_clarity(scored)
    with pytest.raises(ConfigurationError, match="bare has images but no column group 'clarity'"):
        select([scored, bare], Dataset(tmp_path / "corpus"), RULES.model_copy(update={"carry": ()}))


def test_a_selection_that_keeps_nothing_says_so(inputs: list[Dataset], tmp_path: Path) -> None:
    images = [write_rows(tmp_path / "images", [Row("a", CLEAN[0])])]
    rules = Selection(geometry=Geometry(min_side=5000))
    with pytest.raises(HarmonError, match="None of 1 rows passes"):
        select(images, Dataset(tmp_path / "corpus"), rules)


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=200), st.integers(0, 5))
def test_the_shuffle_depends_on_seed_and_key_alone(numbers: list[int], seed: int) -> None:
    keys = [f"{number:032x}" for number in numbers]
    places = dict(zip(keys, places_of(keys, seed).tolist(), strict=True))
    assert places == dict(zip(keys[::-1], places_of(keys[::-1], seed).tolist(), strict=True))
    assert len(set(places.values())) == len(keys)


def test_after_a_failure_no_further_shards_are_begun(tmp_path: Path) -> None:
    rows = [Row(f"r{n}", n, data=b"%d" % n) for n in range(60)]
    dataset, target = write_rows(tmp_path / "toys", rows, 1), Dataset(tmp_path / "target")
    keys = dataset.whole_table("source")["key"].to_pylist()
    first = int(places_of(keys, 0).argmin())
    entry = dataset.entry("images", first)
    assert entry
    tar = tmp_path / "toys" / entry.path
    tar.write_bytes(bytes(tar.stat().st_size))  # found out when its picture is read, by a worker
    with pytest.raises(HarmonError, match="harmon audit"):
        select([dataset], target, Selection(geometry=Geometry(min_side=1), rows_per_shard=1), workers=2)
    assert len(list((tmp_path / "target" / "steps").rglob("0*.json"))) < 45


def test_a_selection_killed_at_any_moment_ends_the_same(chosen: Dataset, tmp_path: Path) -> None:
    """The process kills itself at its nth fsync, is run again, and so on until it ends by itself."""
    write_inputs(tmp_path)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from filtering.select import select\n"
        "from filtering.selection import Selection\n"
        "from pipelines.dataset import Dataset\n"
        "calls, real = 0, os.fsync\n"
        "def deadly(stream):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(stream)\n"
        "os.fsync = deadly\n"
        "root = Path(sys.argv[1])\n"
        "rules = Selection.model_validate_json(sys.argv[3])\n"
        "select([Dataset(root / 'photographs'), Dataset(root / 'scenes')], Dataset(root / 'corpus'), rules)\n"
    )
    statuses = []
    for moment in (5, 14, 10**9):
        command = [sys.executable, "-c", script, str(tmp_path), str(moment), json.dumps(RULES.model_dump())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        statuses.append(subprocess.run(command, env=environment, timeout=120).returncode)
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL, 0]
    target = Dataset(tmp_path / "corpus")
    assert target.head
    assert chosen.head
    assert target.head.content_hash == chosen.head.content_hash
    assert audit(target, deep=True).sound
