"""Diff: samples added, removed with their reasons, forgotten, and values changed, whatever shard they lie in."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from small_datasets import ROWS, SHARDS, source_row, write_all

from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.diff import diff, versions
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.forget import forget
from pipelines.manifest import SOURCE
from pipelines.request import Request
from pipelines.steps import Reads, Step, StepRun

CAPTION = pa.schema([("key", pa.string()), ("text", pa.string()), ("status", pa.string()), ("reason", pa.string())])


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = write_all(tmp_path_factory.mktemp("data") / "toys")
    caption(dataset, "caption.v1", lambda text: f"a picture of {text}")
    caption(dataset, "caption.v2", lambda text: f"a picture of {text}" if text < "2" else f"picture {text}")
    return dataset


def caption(dataset: Dataset, group: str, write) -> None:
    run = StepRun(dataset, Step("caption", 1, {"group": group}, (Reads(dataset, ("source",)),)))
    for shard in run.pending(dataset.shard_numbers):
        rows = [
            {"key": row["key"], "text": write(row["caption"]), "status": "ok"}
            for row in dataset.table(SOURCE, shard).to_pylist()
        ]
        rows[0] |= {"text": None, "status": "failed", "reason": "too_long"}
        out = run.shard(shard)
        out.columns(group, pa.Table.from_pylist(rows, CAPTION))
        out.finish(len(rows))
    run.commit()


def small(
    root: Path,
    rows: list[dict],
    rejects: list[dict] = [],  # noqa: B006
    shards: int = 1,
    pictures: Mapping[str, bytes] = {},
) -> Dataset:
    """A dataset of `rows` in `shards` shards; `pictures` gives the image of each key that has one."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("select", 1, {"rows": len(rows), "shards": shards}))
    for shard in run.pending(range(shards)):
        out = run.shard(shard)
        mine = rows[shard::shards]
        for one in mine:
            if one["key"] in pictures:
                out.images().add(one["key"], pictures[one["key"]], "jpg", {})
        out.columns(SOURCE, pa.Table.from_pylist(mine, SOURCE_SCHEMA))
        lost = rejects if shard == 0 else []
        if lost:
            out.rejects(
                pa.Table.from_pylist(
                    lost, pa.schema([(n, pa.string()) for n in ("key", "source", "row_id", "url", "reason", "detail")])
                )
            )
        out.finish(len(mine) + len(lost))
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    return dataset


def row(number: int, **more: object) -> dict:
    return source_row(9, number) | {"task": "text"} | more


def test_a_version_equals_itself_and_a_copy(toys: Dataset, tmp_path: Path) -> None:
    same = diff(toys.at(3), toys.at(3))
    assert same.equal and not same.columns and "equal" in "\n".join(same.lines())
    assert diff(small(tmp_path / "a", [row(1), row(2)]), small(tmp_path / "b", [row(1), row(2)])).equal


def test_order_and_shards_are_no_difference(tmp_path: Path) -> None:
    rows = [row(number) for number in range(9)]
    assert diff(small(tmp_path / "a", rows), small(tmp_path / "b", rows[::-1], shards=3)).equal


def test_samples_added_removed_and_changed_are_counted_with_reasons_and_examples(tmp_path: Path) -> None:
    before = small(tmp_path / "a", [row(n) for n in range(6)])
    lost = {"key": row(0)["key"], "source": "toys", "row_id": "9-0", "reason": "too_small"}
    talk = [{"role": "user", "text": "why?"}]
    changed = [row(2, caption="new"), row(3, conversations=talk), row(4), row(5), row(7), row(8)]
    found = diff(before, small(tmp_path / "b", changed, [lost], shards=2))
    assert not found.equal
    assert found.added == 2 and {one.key for one in found.added_examples} == {row(7)["key"], row(8)["key"]}
    assert found.removed == {"too_small": 1, "unknown": 1} and found.forgotten == 0
    assert [(one.group, one.column, one.rows) for one in found.columns] == [
        ("source", "caption", 1), ("source", "conversations", 1),
    ]  # fmt: skip
    (example,) = found.columns[0].examples
    assert (example.key, example.before, example.after) == (row(2)["key"], "9-2", "new")
    assert "why?" in str(found.columns[1].examples[0].after)
    text = "\n".join(found.lines())
    assert "1 samples removed: too_small" in text and "source.caption: 1 samples changed" in text


@pytest.mark.parametrize("shards", [1, 2], ids=["equal source files", "other shards"])
def test_images_of_other_bytes_are_a_difference(tmp_path: Path, shards: int) -> None:
    rows = [row(n, task="text" if n == 4 else "text2image") for n in range(6)]
    keys = [one["key"] for one in rows]
    pictures = {key: b"old" + key.encode() for key in keys}
    before = small(tmp_path / "a", rows, pictures=pictures)
    assert diff(before, small(tmp_path / "same", rows, shards=shards, pictures=pictures)).equal
    other = pictures | {keys[2]: b"new"}
    del other[keys[4]]  # a row of text may have an image, and need not
    after = small(tmp_path / "b", rows, shards=shards, pictures=other)
    found = diff(before, after)
    assert not found.equal
    ((group, column, count, examples),) = [(c.group, c.column, c.rows, c.examples) for c in found.columns]
    assert (group, column, count) == ("images", "data", 2)
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in pictures.items()}
    assert {one.key: (one.before, one.after) for one in examples} == {
        keys[2]: (digests[keys[2]], hashlib.sha256(b"new").hexdigest()),
        keys[4]: (digests[keys[4]], None),
    }
    assert "images.data: 2 samples changed" in "\n".join(found.lines())
    forget(before, Request(keys=frozenset([keys[0], keys[2]])))  # their old bytes are gone, whichever version is asked
    assert [one.key for one in diff(before.at(0), after).columns[0].examples] == [keys[4]]


def test_groups_that_one_version_lacks_are_named_and_new_captions_compared(toys: Dataset) -> None:
    found = diff(toys.at(1), toys.at(2))
    assert found.groups_added == ("caption.v1",) and not found.columns and not found.removed
    (captions,) = found.captions
    pairs = SHARDS * (ROWS - 2)
    assert (captions.before, captions.after, captions.pairs, captions.changed) == ("source", "caption.v1", pairs, pairs)
    assert captions.only_before == SHARDS and captions.mean_length_after == 16
    assert captions.mean_edit_distance == 13 and captions.mean_edit_share == 13 / 16


def test_two_caption_versions_are_compared_by_name(toys: Dataset) -> None:
    (captions,) = diff(toys.at(3), toys.at(3), captions=("caption.v1", "caption.v2")).captions
    assert captions.pairs == SHARDS * (ROWS - 2) and captions.changed == captions.pairs // 2
    assert captions.mean_edit_distance == 2.5  # "a " and "of " go from half of them: five bytes
    assert captions.examples[0][1].startswith("a picture of") and captions.examples[0][2].startswith("picture ")
    with pytest.raises(ConfigurationError, match=r"no captions 'caption.v3'; it has source, caption.v1, caption.v2"):
        diff(toys.at(3), toys.at(3), captions=("caption.v1", "caption.v3"))


def test_forgotten_samples_are_called_so_although_their_files_are_gone(tmp_path: Path) -> None:
    dataset = write_all(tmp_path / "toys")
    first, second = source_row(1, 2)["key"], source_row(1, 4)["key"]
    forget(dataset, Request(keys=frozenset([first])))
    forget(dataset, Request(keys=frozenset([second])))
    whole = diff(dataset.at(1), dataset.at(3))
    assert whole.removed == {"forgotten": 2} and whole.forgotten == 2 and not whole.columns and not whole.added
    assert {one.key for one in whole.removed_examples} == {first, second}
    middle = diff(dataset.at(2), dataset.at(3))  # of commit 2 nothing stands any more either
    assert [one.key for one in middle.removed_examples] == [second]
    assert [one.key for one in diff(dataset.at(3), dataset.at(2)).added_examples] == [second]


def test_versions_are_two_commits_or_another_dataset(toys: Dataset, tmp_path: Path) -> None:
    before, after = versions(toys.root, ("0", "2"))
    assert before.head == toys.commit(0) and after.head == toys.commit(2)
    assert versions(toys.root, (str(tmp_path),))[1].root == tmp_path
    with pytest.raises(HarmonError, match=r"no commit 9; it has \[0, 1, 2, 3\]"):
        versions(toys.root, ("0", "9"))
    with pytest.raises(ConfigurationError, match="two commit numbers"):
        versions(toys.root, ("1",))
    with pytest.raises(HarmonError, match="there is no dataset"):
        diff(toys, Dataset(tmp_path / "none"))
