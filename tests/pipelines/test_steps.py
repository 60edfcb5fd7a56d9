"""Steps: keys name the work, receipts resume it, rows are conserved, and one commit states it."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_datasets import (
    ROWS,
    SHARDS,
    download_step,
    score_step,
    source_row,
    write_all,
    write_column,
    write_images,
)

from pipelines.canonical import sha256_hex
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import manifest_path
from pipelines.steps import Progress, Reads, ShardOutput, Step, StepRun
from pipelines.workspace import Journal, Workspace


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_all(tmp_path_factory.mktemp("data") / "toys")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = Dataset(tmp_path_factory.mktemp("data") / "toys")
    write_images(dataset)
    return dataset


@pytest.fixture
def images(pictures: Dataset, tmp_path: Path) -> Dataset:
    """A dataset of its own for each test, with the images step committed."""
    shutil.copytree(pictures.root, tmp_path / "toys")
    return Dataset(tmp_path / "toys")


def output(root: Path, step: Step | None = None, shard: int = 0) -> ShardOutput:
    return StepRun(Dataset(root), step or download_step()).shard(shard)


def rows(*numbers: int, task: str = "text") -> pa.Table:
    return pa.Table.from_pylist([source_row(0, number) | {"task": task} for number in numbers], SOURCE_SCHEMA)


def column(dataset: Dataset, shard: int, name: str = "x") -> pa.Table:
    return dataset.table("source", shard, ["key"]).append_column(name, pa.array(range(dataset.rows(shard))))


def test_dataset_reads_back_what_the_steps_wrote(toys: Dataset) -> None:
    assert toys.name == "toys"
    assert toys.groups() == ["download.telemetry", "images", "score.length", "source"]
    assert toys.shard_numbers == list(range(SHARDS))
    assert toys.total_rows == SHARDS * (ROWS - 1)
    images = toys.images(1)
    assert len(images) == ROWS - 2
    scores = toys.table("score.length", 1, ["key", "score"]).to_pylist()
    assert [row["score"] for row in scores[:2]] == [float(len(images.read(row).data)) for row in (0, 1)]
    assert toys.whole_table("source", ["row_id"]).column("row_id").to_pylist()[ROWS - 1] == "1-0"
    assert toys.rejects().select(["row_id", "reason", "step"]).to_pylist()[0] == {
        "row_id": f"0-{ROWS - 1}",
        "reason": "dead_link",
        "step": "download",
    }


def test_commits_count_rows_and_reasons(toys: Dataset) -> None:
    download, score = toys.commits()
    assert (download.rows_in, download.rows_out, download.rejected) == (24, 20, {"dead_link": 4})
    assert (score.rows_in, score.rows_out, score.failed) == (20, 16, {"text": 4})
    assert score.parent == sha256_hex(toys.store.read(manifest_path(0)))
    assert score.terms == {"toys": {"licence": "CC0-1.0", "terms": "open"}}
    assert [(entry.dataset, entry.commit) for entry in score.inputs] == [("toys", 0)]


def test_nothing_is_left_beside_the_data_after_a_commit(toys: Dataset) -> None:
    assert not (toys.root / ".work").exists()


def test_a_committed_step_has_nothing_to_do(toys: Dataset) -> None:
    run = StepRun(Dataset(toys.root), download_step())
    assert run.committed == toys.commits()[0]
    assert run.pending(range(SHARDS)) == []
    assert run.commit() == toys.commits()[0]
    assert len(toys.commits()) == 2


def test_content_hash_excludes_telemetry_times_and_place(toys: Dataset, tmp_path: Path) -> None:
    other = write_all(tmp_path / "elsewhere" / "toys")
    telemetry = [dataset.entry("download.telemetry", 0).sha256 for dataset in (toys, other)]
    assert telemetry[0] != telemetry[1]
    assert [c.content_hash for c in other.commits()] == [c.content_hash for c in toys.commits()]


def test_step_key_changes_with_everything_that_is_computed(toys: Dataset) -> None:
    base = score_step(toys)
    reads = base.reads
    keys = {
        base.key,
        Step("other", 1, base.configuration, reads).key,
        Step("score", 2, base.configuration, reads).key,
        Step("score", 1, {"head": "width"}, reads).key,
        Step("score", 1, base.configuration, (Reads(toys, ("images",)),)).key,
        Step("score", 1, base.configuration).key,
    }
    assert len(keys) == 6
    assert base.key8 == base.key[:8]


def test_step_key_ignores_groups_that_are_not_read(toys: Dataset, images: Dataset) -> None:
    assert score_step(images).key == score_step(toys).key
    write_column(images, "more").commit()
    assert score_step(images).key == score_step(toys).key


def test_no_step_may_read_telemetry_or_what_is_absent(toys: Dataset) -> None:
    with pytest.raises(ConfigurationError, match="telemetry"):
        _ = Step("x", 1, {}, (Reads(toys, ("download.telemetry",)),)).key
    with pytest.raises(HarmonError, match="no group 'clarity'"):
        _ = Step("x", 1, {}, (Reads(toys, ("clarity",)),)).key


def test_progress_counts_receipts_and_rows(images: Dataset) -> None:
    dataset = images
    seen: list[Progress] = []
    run = StepRun(dataset, Step("column", 1, {}, (Reads(dataset, ("source",)),)), seen.append)
    for shard in run.pending(dataset.shard_numbers):
        out = run.shard(shard)
        out.columns("column", column(dataset, shard))
        out.finish(rows_in=5)
    assert [(p.shards_done, p.shards_total, p.rows_done) for p in seen] == [(n, 4, 5 * n) for n in (1, 2, 3, 4)]


def test_receipts_are_not_listed_again_for_every_shard(images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the work of a step grows with its shards, and not with their square."""
    step, seen = Step("column", 1, {}, (Reads(images, ("source",)),)), []
    run, other = StepRun(images, step, seen.append), StepRun(images, step)
    listings: list[int] = []
    monkeypatch.setattr(run, "finished", lambda: listings.append(1) or StepRun.finished(run))
    for doer, shard in zip((other, run, run, run), run.pending(images.shard_numbers), strict=True):
        out = doer.shard(shard)
        out.columns("column", column(images, shard))
        out.finish(rows_in=5)
    assert [(p.shards_done, p.rows_done) for p in seen] == [(n, 5 * n) for n in (2, 3, 4)]  # another process's, too
    assert len(listings) == 2
    monkeypatch.setattr("pipelines.steps.LIST_EVERY", 0.0)
    assert run.progress().shards_done == 4


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda out: out.columns("source", rows(0, 1)), "have to be|every row has to be"),
        (lambda out: out.columns("source", rows(0, 0, 1)), "comes twice"),
        (
            lambda out: (out.columns("source", rows(0, 1, 2)), out.columns("x", _x(rows(0, 1)))),
            "keys of group x",
        ),
        (lambda out: (out.columns("source", rows(0, 1, 2)), out.columns("x", _x(rows(1, 0, 2)))), "in order"),
        (lambda out: (out.columns("source", rows(0, 1, 2, task="text2image")), _add(out, 0)), "no image"),
        (lambda out: (out.columns("source", rows(0, 1, 2)), _add(out, 1), _add(out, 0)), "same order"),
        (lambda out: (out.columns("source", rows(0, 1, 2)), _add(out, 5)), "not rows of source"),
        (lambda out: _add(out, 0), "no group source"),
        (lambda out: out.columns("x", _x(rows(0, 1, 2))), "does not stand yet"),
        (lambda out: out.columns("../x", _x(rows(0))), "cannot name"),
        (lambda out: out.columns("images", _x(rows(0))), "cannot name"),
        (lambda out: out.columns("x", pa.table({"key": ["a"], "y": pa.nulls(1)})), "explicit schema"),
        (lambda out: out.columns("x", pa.table({"key": ["a"], "status": ["failed"]})), "why"),
        (
            lambda out: out.columns("x", pa.table({"key": ["a"], "status": ["odd"], "reason": ["r"]})),
            "status 'odd'",
        ),
        (lambda out: out.rejects(pa.Table.from_pylist([{"key": "a"}], REJECT_SCHEMA)), "no reason"),
    ],
)
def test_a_shard_that_does_not_add_up_gets_no_receipt(
    tmp_path: Path, spoil: Callable[[ShardOutput], Any], sentence: str
) -> None:
    out = output(tmp_path / "toys")
    with pytest.raises(HarmonError, match=sentence):
        spoil(out)
        out.finish(rows_in=3)
    assert StepRun(Dataset(tmp_path / "toys"), download_step()).finished() == []


def _x(table: pa.Table) -> pa.Table:
    return table.select(["key"]).append_column("x", pa.array([1.0] * table.num_rows))


def _add(out: ShardOutput, row: int) -> None:
    out.images().add(source_row(0, row)["key"], b"x", "jpg", {})


def test_a_column_step_keeps_every_row_in_order(toys: Dataset) -> None:
    step = Step("short", 1, {}, (Reads(toys, ("source",)),))
    run = StepRun(toys, step)
    out = run.shard(0)
    out.columns("short", column(toys, 0).slice(0, 3))
    with pytest.raises(HarmonError, match="in the shard's order"):
        out.finish(rows_in=5)
    with pytest.raises(HarmonError, match="none may be left out"):
        out.finish(rows_in=4)
    run.clean()


def test_a_group_is_never_rewritten(toys: Dataset) -> None:
    with pytest.raises(HarmonError, match="give the new values a new group name"):
        write_column(toys, "again", group="score.length")


def test_a_shard_number_is_never_given_twice(toys: Dataset) -> None:
    out = output(toys.root, Step("download", 2, {}))
    out.columns("source", rows(0))
    with pytest.raises(HarmonError, match="stands already"):
        out.finish(rows_in=1)


def test_commit_waits_for_every_shard(images: Dataset) -> None:
    dataset = images
    run = StepRun(dataset, Step("column", 1, {}, (Reads(dataset, ("source",)),)))
    with pytest.raises(HarmonError, match="no finished shard"):
        run.commit()
    out = run.shard(2)
    out.columns("column", column(dataset, 2))
    out.finish(rows_in=5)
    with pytest.raises(HarmonError, match="3 of 4 shards have no receipt"):
        run.commit()


def test_shards_of_one_group_share_a_schema(tmp_path: Path) -> None:
    run = StepRun(Dataset(tmp_path / "toys"), download_step())
    for shard, extra in enumerate((pa.array([1]), pa.array(["one"]))):
        out = run.shard(shard)
        out.columns("source", rows(shard))
        out.columns("x", rows(shard).select(["key"]).append_column("x", extra))
        out.finish(rows_in=1)
    with pytest.raises(HarmonError, match="one schema"):
        run.commit()


def test_racing_commits_of_the_same_step_make_one_commit(images: Dataset) -> None:
    dataset = images
    write_column(dataset, "same")
    step = Step("same", 1, {}, (Reads(dataset, ("source",)),))
    assert race([StepRun(Dataset(dataset.root), step).commit for _ in range(4)]) == [None] * 4
    assert len(dataset.commits()) == 2


def race(calls: list[Callable[[], Any]]) -> list[HarmonError | None]:
    barrier = threading.Barrier(len(calls))
    outcomes: list[HarmonError | None] = [None] * len(calls)

    def run(number: int) -> None:
        barrier.wait()
        try:
            calls[number]()
        except HarmonError as problem:
            outcomes[number] = problem

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_work_of_an_attempt_without_receipt_is_adopted(images: Dataset) -> None:
    content_hash, before = images.head.content_hash, images.entry("download.telemetry", 1)
    for path in (manifest_path(0), f"steps/{download_step().key}/00001.json"):
        images.store.local(path).unlink()
    again = Dataset(images.root)
    write_images(again)
    assert again.head.content_hash == content_hash
    assert again.entry("download.telemetry", 1) == before


def test_temporaries_of_many_shards_start_empty_and_are_gone_afterwards(tmp_path: Path) -> None:
    run = StepRun(Dataset(tmp_path / "toys"), download_step())
    with pytest.raises(KeyboardInterrupt), run.together() as folder:
        (folder / "file").write_bytes(b"")
        raise KeyboardInterrupt
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "left by a kill").write_bytes(b"")
    with run.together() as folder:
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_journal_goes_with_the_receipt(tmp_path: Path) -> None:
    run = StepRun(Dataset(tmp_path / "toys"), download_step())
    run.journal(0).append({"row": 1})
    out = run.shard(0)
    out.columns("source", rows(0))
    out.finish(rows_in=1)
    assert run.journal(0).entries() == []


def test_journal_drops_a_torn_last_line_and_goes_on(tmp_path: Path) -> None:
    Journal(tmp_path / "j").append({"row": 1}, {"row": 2})
    with (tmp_path / "j").open("ab") as stream:
        stream.write(b'{"row":')
    journal = Journal(tmp_path / "j")
    assert journal.entries() == [{"row": 1}, {"row": 2}]
    journal.append({"row": 3})
    assert Journal(tmp_path / "j").entries() == [{"row": 1}, {"row": 2}, {"row": 3}]


def test_damage_inside_a_journal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"row":1}\nrubbish\n{"row":3}\n')
    with pytest.raises(HarmonError, match="line 2"):
        Journal(tmp_path / "j").entries()


def test_a_shard_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    hold = (
        "import sys,time; from pathlib import Path; from pipelines.workspace import Workspace; "
        "Workspace(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(HarmonError, match="another process is writing"):
                Workspace(tmp_path / "work").acquire(patience=0.2)
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait()
    work = Workspace(tmp_path / "work")
    work.acquire(patience=5)
    work.acquire(patience=0)  # a process holds its own workspace once
    work.discard()
    assert not (tmp_path / "work").exists()
