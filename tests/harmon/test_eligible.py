"""Which rows serve: found once for all entries, in shares, and kept under the hashes of what was read."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import REWRITES, make_corpus, make_job, mixture, small_stage

from harmon.text import ChatText
from harmon.training.data import ImageBatch, StageData
from harmon.training.eligible import Criterion, Fact, RowBits, find_serving
from harmon.training.memory import Lengths
from harmon.training.mixture import Block, TaskMixture
from harmon.training.rows import StageRows, pairs_of
from pipelines.dataset import Dataset

STAGE = small_stage()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Dataset:
    return make_corpus(tmp_path_factory.mktemp("rows") / "corpus", shards=4)


def test_rows_read_in_small_batches_are_the_same(corpus, monkeypatch):
    whole = StageRows(STAGE, mixture(corpus), None)
    monkeypatch.setattr("harmon.training.eligible.BATCH", 5)
    monkeypatch.setattr("harmon.training.window.BATCH", 5)
    parts = StageRows(STAGE, mixture(corpus), None)
    assert parts.left_out == whole.left_out
    for task in ("text", "image2text", "text2image"):
        assert [parts.row(task, n) for n in range(99)] == [whole.row(task, n) for n in range(99)]


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each column of each shard is read."""
    found: Counter = Counter()
    batches = Dataset.batches

    def counted(dataset, group, shard, columns, rows):
        found.update((group, shard, column) for column in columns)
        return batches(dataset, group, shard, columns, rows)

    monkeypatch.setattr(Dataset, "batches", counted)
    return found


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_bit_a_row_gives_the_rows_in_order(serves):
    rows = RowBits(np.packbits(np.array(serves)))
    expected = np.flatnonzero(serves).tolist()
    assert [rows[place] for place in range(len(rows))] == expected
    assert rows.mask(len(serves)).tolist() == serves
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_the_rows_that_serve_are_those_of_the_entrys_task_with_a_usable_text_and_a_picture(corpus):
    rows = StageRows(STAGE, mixture(corpus), None)
    table = corpus.whole_table("source").append_column("rewrite", corpus.whole_table(REWRITES)["text"]).to_pylist()
    keys = {key: {row["key"] for row in table if row["task"] == task and usable(row)} for key, task, usable in (
        (("text", 0), "text", lambda row: pairs_of(row["conversations"])),
        (("image2text", 0), "image2text", lambda row: pairs_of(row["conversations"])),
        (("image2text", 1), "image2text", lambda row: row["caption"]),
        (("text2image", 0), "text2image", lambda row: row["caption"]),
        (("text2image", 1), "image2text", lambda row: row["rewrite"]),
    )}  # fmt: skip
    for (task, entry), expected in keys.items():
        found = [rows.row(task, number) for number in range(200)]
        assert {row.place.key for row in found if row.entry == entry} == expected
    assert rows.left_out["text2image"] == [0, 0]
    for task in ("text", "image2text", "text2image"):
        entries = mixture(corpus).of(task)
        plain = [
            {s: np.array([r for r in range(12) if table[12 * s + r]["key"] in keys[task, e]]) for s in range(4)}
            for e in range(len(entries))
        ]
        locate = TaskMixture(STAGE, task, [entry.weight for entry in entries], plain).locate
        for number in range(200):
            row = rows.row(task, number)
            assert (row.entry, row.place.shard, row.place.row) == locate(number)


def test_a_column_is_read_once_for_all_entries_and_not_again_by_the_next_start(corpus, reads, tmp_path):
    asked = [entry for task in ("text", "image2text", "text2image") for entry in mixture(corpus).of(task)]
    assert len(asked) == 5
    first = StageRows(STAGE, mixture(corpus), None, tmp_path)
    assert set(reads.values()) == {1} and {shard for _, shard, _ in reads} == {0, 1, 2, 3}
    reads.clear()
    again = StageRows(STAGE, mixture(corpus), None, tmp_path)
    assert not reads and again.left_out == first.left_out
    assert [again.row("text", n).place for n in range(30)] == [first.row("text", n).place for n in range(30)]


def test_what_was_found_of_other_rows_or_by_other_means_does_not_count(corpus, reads, tmp_path):
    criterion = Criterion((Fact("source", "task", ("text",)),), ())
    find_serving({"a": corpus}, [("a", criterion)], tmp_path)
    other = make_corpus(tmp_path / "other", shards=2, wide=True)
    for dataset, wanted in ((other, criterion), (corpus, Criterion((Fact("source", "task", ("image2text",)),), ()))):
        reads.clear()
        find_serving({"a": dataset}, [("a", wanted)], tmp_path)
        assert reads
    for file in tmp_path.glob("*.npz"):
        file.write_bytes(b"cut")
    reads.clear()
    (found,) = find_serving({"a": corpus}, [("a", criterion)], tmp_path)
    assert reads and sum(map(len, found.shards.values())) == 16


def test_a_dry_run_keeps_nothing(corpus, tmp_path):
    StageRows(STAGE, mixture(corpus), None, tmp_path / "kept", keeps=False)
    assert not (tmp_path / "kept").exists()


def test_workers_share_the_shards_and_all_know_the_same(corpus, tmp_path):
    mp.start_processes(
        _worker, args=(f"file://{tmp_path / 'meeting'}", str(corpus.root), str(tmp_path)), nprocs=2,
        start_method="spawn",
    )  # fmt: skip
    told = [dict(np.load(tmp_path / f"told-{rank}.npz")) for rank in range(2)]
    assert told[0]["read"].tolist() == [0, 2] and told[1]["read"].tolist() == [1, 3]
    assert told[0]["rows"].tolist() == told[1]["rows"].tolist() == [4, 4, 4, 4]
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 1  # rank 0's: the other has a folder of its own
    assert not (tmp_path / "kept-1").exists()


def _worker(rank: int, meeting: str, root: str, folder: str) -> None:
    read: list[int] = []
    batches = Dataset.batches
    Dataset.batches = lambda one, group, shard, *how: read.append(shard) or batches(one, group, shard, *how)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    criterion = Criterion((Fact("source", "task", ("text",)),), ())
    kept = Path(folder) / ("kept" if rank == 0 else "kept-1")  # as on machines without a common disk
    for _ in range(2):
        (found,) = find_serving({root: Dataset(root)}, [(root, criterion)], kept)
    np.savez(Path(folder) / f"told-{rank}.npz", read=sorted(read), rows=[len(rows) for rows in found.shards.values()])
    dist.destroy_process_group()


def test_a_later_start_opens_no_shard_for_the_probe_and_the_text_lengths(tmp_path, reads):
    job = make_job(tmp_path, STAGE)
    text = ChatText(job.tokenizer)

    def start(kept: Path | None) -> tuple[StageData, Lengths, ImageBatch]:
        data = StageData(STAGE, job.mixture, job.model, text, job.latents, kept)
        return data, data.lengths(), data.images(Block("text2image", 0, 32), range(32))

    _, lengths, probe = start(None)
    start(tmp_path / "kept")
    reads.clear()
    data, again, same = start(tmp_path / "kept")
    assert not reads
    assert again == lengths
    for name, value in vars(probe).items():
        assert torch.equal(value, getattr(same, name)) if isinstance(value, torch.Tensor) else value == vars(same)[name]
    plain = StageRows(STAGE, job.mixture, job.latents)
    for task in ("text", "image2text", "text2image"):
        for number in (0, 63, 64):
            kept_row, row = data.rows.row(task, number), plain.row(task, number)
            assert replace(kept_row, latents=None) == replace(row, latents=None)
            assert row.latents is None or np.array_equal(kept_row.latents, row.latents)


def test_first_rows_of_another_stage_or_mixture_or_a_damaged_file_do_not_count(tmp_path, corpus, reads):
    def kept(stage=STAGE, weight=1) -> StageRows:
        named = mixture(corpus)
        first = named.text2image[0].model_copy(update={"weight": weight})
        changed = named.model_copy(update={"text2image": (first, *named.text2image[1:])})
        rows = StageRows(stage, changed, None, tmp_path / "kept")
        rows.keep_first()
        return rows

    kept()
    for rows in (kept(small_stage(seed=5)), kept(weight=3)):
        assert not rows._first
    assert kept()._first
    for file in (tmp_path / "kept").glob("first-*.npz"):
        file.write_bytes(b"cut")
    again = kept()
    assert not again._first and again.row("text", 3) == kept().row("text", 3)


def test_first_rows_are_read_where_their_dataset_lies_now(tmp_path, corpus):
    def kept(dataset: Dataset) -> StageRows:
        rows = StageRows(STAGE, mixture(dataset), None, tmp_path / "kept")
        rows.keep_first()
        return rows

    kept(corpus)
    shutil.copytree(corpus.root, tmp_path / "moved")
    rows = kept(Dataset(tmp_path / "moved"))
    assert rows._first
    assert {rows.row(task, 3).place.dataset for task in ("text", "image2text", "text2image")} == {
        str(tmp_path / "moved")
    }


def test_training_keeps_what_serves_beside_its_stage(tmp_path):
    from harmon.training.job import ROWS, stage_folder, training_key
    from harmon.training.loop import train

    job = make_job(tmp_path, small_stage(steps=1))
    folder = train(job)
    assert folder == stage_folder(job, training_key(job)) and len(list((folder / ROWS).glob("*.npz"))) == 5 + 1
    shutil.rmtree(folder)
