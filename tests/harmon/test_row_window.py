"""Shards in use: bounded in bytes, read ahead, without a file that a kill would leave behind."""

import tempfile
import threading

import numpy as np
import pytest
from miniature import make_autoencoder, make_corpus, make_job, mixture, small_stage

from harmon.latents import latents_array, latents_group, write_latents
from harmon.training.mixture import Shuffle
from harmon.training.rows import StageRows
from harmon.training.window import OpenLatents, OpenShards
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError


def shard(number: int) -> OpenLatents:
    rows = np.arange(8, dtype=np.int32)
    return OpenLatents(np.full((8, 100), number, np.float16), rows, np.zeros((0, 100), np.float16), rows - 9)


def test_open_shards_take_no_more_bytes_than_they_may():
    opened: list[int] = []
    most = 3 * shard(0).bytes
    shards = OpenShards(lambda number: opened.append(number) or shard(number), most_bytes=most)
    for number in (0, 1, 2, 0, 3, 0, 4, 0):
        assert shards.get(number).of(0, True)[0] == number
        assert shards.bytes <= most
    assert opened == [0, 1, 2, 3, 4]  # 0, used all the time, stays
    shards.get(1)
    assert opened[-1] == 1  # its place was needed
    shards.close()


def test_shards_are_opened_in_threads_before_they_are_asked_for():
    came = threading.Event()
    shards = OpenShards(lambda number: came.set() or shard(number))
    shards.read_ahead([7])
    assert came.wait(10)
    assert shards.get(7).of(3, False)[0] == 7
    shards.close()


def test_an_error_of_a_thread_is_told_to_who_asks():
    def fail(number: int) -> OpenLatents:
        raise HarmonError("the shard is gone")

    shards = OpenShards(fail)
    shards.read_ahead([1])
    with pytest.raises(HarmonError, match="the shard is gone"):
        shards.get(1)
    shards.close()


def test_a_window_reaches_into_the_next_shard_by_shard():
    shuffle = Shuffle([10] * 12, 4, "key")
    for epoch, window in ((0, 0), (0, 1), (0, 2), (3, 1)):
        start = epoch * 120 + window * 40
        needed = [{shuffle.locate(start + position)[0] for position in range(80)}]
        reaches = [shuffle.reach(start + position) for position in range(40)]
        assert [reach[:2] for reach in reaches] == [(epoch, window)] * 40
        assert [reach[2] for reach in reaches] == [1 + position // 10 for position in range(40)]
        assert len(shuffle.places_within(reaches[0])) == 5
        assert set(shuffle.places_within(reaches[-1])) == needed[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("run"), small_stage(window_shards=1))


def test_a_shard_is_being_opened_before_its_first_row_is_asked_for(job, monkeypatch):
    rows = StageRows(job.stage, job.mixture, job.latents)
    begun, begin = set(), rows._open._begin
    monkeypatch.setattr(rows._open, "_begin", lambda piece: begun.add(piece.shard) or begin(piece))
    rows.row("text", 0)
    for number in range(1, 12):
        before = set(begun)
        assert rows.row("text", number).place.shard in before
    assert before == {0, 1, 2}
    rows.close()


@pytest.mark.parametrize("batch", [512, 5])
def test_rows_are_those_of_the_columns_and_leave_no_file(job, tmp_path, monkeypatch, batch):
    monkeypatch.setattr("harmon.training.window.BATCH", batch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset = Dataset(job.mixture.text[0].dataset)
    rows = StageRows(job.stage, job.mixture, job.latents)
    for task in ("text", "image2text", "text2image"):
        for number in range(40):
            row = rows.row(task, number)
            source = dataset.table("source", row.place.shard).slice(row.place.row, 1).to_pylist()[0]
            entry = mixture(dataset).of(task)[row.entry]
            group, column = (entry.text, "text") if entry.text.startswith("caption.") else ("source", entry.text)
            column = "conversations" if column == "conversation" else column
            assert row.place.key == source["key"] and source["task"] == entry.rows
            assert row.text == dataset.table(group, row.place.shard)[column][row.place.row].as_py()
            if task == "text":
                assert row.latents is None
            else:
                stored = latents_array(dataset.table(job.latents, row.place.shard)["crop"])[row.place.row]
                assert np.array_equal(row.latents, stored)
    assert not list(tmp_path.iterdir())
    rows.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A dataset of pictures that are not square, and the group of their latents."""
    folder = tmp_path_factory.mktemp("wide")
    dataset, autoencoder = make_corpus(folder / "corpus", wide=True), make_autoencoder(folder / "patch.safetensors")
    write_latents(dataset, 64, autoencoder)
    return dataset, latents_group(64, autoencoder)


@pytest.mark.parametrize("window", [8, 1])
def test_latents_are_those_of_the_crop_that_the_task_sees(wide, window):
    """With a window over all shards entries share what is read of each, with a smaller one they do not."""
    dataset, group = wide
    rows = StageRows(small_stage(window_shards=window), mixture(dataset), group)
    for task, column in (("image2text", "padded"), ("text2image", "crop")):
        for number in range(60):
            row = rows.row(task, number)
            stored = latents_array(dataset.table(group, row.place.shard)[column])[row.place.row]
            assert stored.any() and np.array_equal(row.latents, stored)
    rows.close()


def test_a_shards_latents_are_read_once_for_all_entries_whose_window_holds_every_shard(wide, monkeypatch):
    dataset, group = wide
    reads: list[int] = []
    batches = Dataset.batches

    def counted(one, name, shard, *how):
        reads.extend([shard] * (name == group))
        return batches(one, name, shard, *how)

    monkeypatch.setattr(Dataset, "batches", counted)
    for window, entries in ((8, 1), (1, 4)):
        rows = StageRows(small_stage(window_shards=window), mixture(dataset), group)
        reads.clear()
        for number in range(200):
            for task in ("image2text", "text2image"):
                rows.row(task, number)
        assert sorted(reads) == sorted([0, 1, 2] * entries)
        held = sum(opening.result().bytes for opening in rows._open._shards.values())
        assert held == rows._open.bytes
        rows.close()


def test_no_room_for_a_shard_is_told_with_what_to_do(job, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    rows = StageRows(job.stage, job.mixture, job.latents)
    with pytest.raises(HarmonError, match="make room, or name another folder with TMPDIR"):
        rows.row("text", 0)
    rows.close()
