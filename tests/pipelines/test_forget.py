"""Forgetting: samples leave every listing and file, may not come back, and a kill at any point changes nothing."""

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_datasets import ROWS, SHARDS, picture, source_row, write_all, write_images, write_scores

import pipelines.drafts
import pipelines.forget
import pipelines.leftovers
from pipelines.audit import audit
from pipelines.canonical import sha256_hex
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.drafts import Overtaken
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.forget import Plan, delete_tombstoned, forget, forget_everywhere, plan_forgetting, relatives
from pipelines.forget_report import run_forget
from pipelines.manifest import SOURCE, Receipt, receipt_path, step_path
from pipelines.repair import apply_repair, plan_repair
from pipelines.request import Request, read_request, read_requests
from pipelines.steps import Reads, Step, StepRun
from pipelines.storage import is_temporary
from pipelines.tombstones import Tombstones, standing, tombstones, tombstones_beside, url_sha256

KILLS = 200 if os.environ.get("HARMON_SOAK") else 6
REPOSITORY = Path(__file__).parents[2]
KEY = source_row(1, 2)["key"]
ONE = Request(keys=frozenset([KEY]))


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Dataset]:
    yield write_all(tmp_path / "toys")


def select_step(toys: Dataset) -> Step:
    return Step("select", 1, {"all": True}, (Reads(toys, ("images", "source")),))


def derive(toys: Dataset, root: Path) -> Dataset:
    """A dataset of all rows of `toys`, in one shard, reversed."""
    dataset = Dataset(root)
    run = StepRun(dataset, select_step(toys))
    run.pending([0])
    out = run.shard(0)
    table = toys.whole_table(SOURCE)
    table = table.take(list(range(table.num_rows))[::-1])
    for row in table.to_pylist():
        if row["task"] != "text":
            image = next(found for shard in toys.shard_numbers if (found := toys.images(shard).find(row["key"])))
            out.images().add(row["key"], image.data, image.extension, image.view)
    out.columns(SOURCE, table)
    out.finish(table.num_rows)
    run.commit()
    return dataset


def bytes_below(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def test_a_forgotten_sample_is_in_no_listing_and_in_no_file(toys: Dataset) -> None:
    before = {path.name: path.read_bytes() for path in toys.root.glob("images/*/0000[023].tar")}
    assert picture(1, 2) in bytes_below(toys.root)
    (commit,) = forget(toys, ONE)
    assert (commit.rows_in, commit.rows_out, dict(commit.rejected)) == (ROWS - 1, ROWS - 2, {"forgotten": 1})
    assert KEY not in toys.whole_table(SOURCE).column("key").to_pylist()
    assert KEY not in toys.whole_table("score.length").column("key").to_pylist()
    assert toys.images(1).find(KEY) is None
    assert picture(1, 2) not in bytes_below(toys.root / "images")
    assert source_row(1, 2)["row_id"].encode() not in bytes_below(toys.root / "rejects")
    after = {path.name: path.read_bytes() for path in toys.root.glob("images/*/0000[023].tar")}
    assert before == after  # only the shard that held it was written anew
    report = audit(toys, deep=True)
    assert report.sound and not report.findings, list(report.lines())
    assert toys.total_rows == SHARDS * (ROWS - 1) - 1


def test_forgetting_again_does_nothing_and_a_second_request_adds_its_own_commit(toys: Dataset) -> None:
    forget(toys, ONE)
    assert forget(toys, ONE) == []
    assert len(forget(toys, Request(keys=frozenset([source_row(1, 0)["key"]])))) == 1
    assert audit(toys, deep=True).sound
    assert toys.rejects().column("reason").to_pylist().count("forgotten") == 2


def test_a_whole_shard_can_be_forgotten(toys: Dataset) -> None:
    keys = frozenset(toys.table(SOURCE, 2).column("key").to_pylist())
    (commit,) = forget(toys, Request(keys=keys))
    assert commit.rows_out == 0 and toys.rows(2) == 0 and len(toys.images(2)) == 0
    report = audit(toys, deep=True)
    assert report.sound, list(report.lines())


def test_rows_are_found_by_link_and_by_bytes_and_children_follow_their_parents(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "linked")
    run = StepRun(dataset, Step("download", 1, {}))
    run.pending([0])
    out = run.shard(0)
    rows = [
        source_row(0, row) | {"task": "text", "url": f"http://a.example/{row}", "sha256": f"{row:064x}"}
        for row in range(5)
    ]
    rows[0] |= {"parent_key": rows[3]["key"]}  # a child before its parent
    rows[4] |= {"parent_key": rows[0]["key"]}
    out.columns(SOURCE, pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    out.finish(5)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    forget(dataset, Request(urls=frozenset(["http://a.example/3"]), sha256=frozenset([f"{1:064x}"])))
    assert dataset.table(SOURCE, 0).column("row_id").to_pylist() == ["0-2"]
    stones = tombstones(dataset)
    assert url_sha256("http://a.example/3") in stones.urls_sha256 and len(stones.keys) == 4
    assert b"a.example/3" not in bytes_below(dataset.root)


def test_what_is_not_there_is_barred_all_the_same(toys: Dataset) -> None:
    absent = Request(sha256=frozenset([sha256_hex(b"never seen")]))
    (commit,) = forget(toys, absent)
    assert commit.rows_in == 0 and forget(toys, absent) == []
    assert tombstones(toys).bar_bytes(sha256_hex(b"never seen"))
    assert audit(toys, deep=True).sound


def test_derived_datasets_are_listed_or_followed(toys: Dataset, tmp_path: Path) -> None:
    made = derive(toys, tmp_path / "made")
    assert [(one.name, one.relation, one.samples) for one in relatives(toys, ONE)] == [("made", "derived", 1)]
    dry = run_forget(toys, ONE, follow=True, dry_run=True)
    assert [(one.dataset, one.samples) for one in dry.done] == [("toys", 1), ("made", 1)] and len(toys.commits()) == 2
    report = run_forget(toys, ONE)
    assert [one.name for one in report.remaining] == ["made"] and "made holds 1 of them" in "\n".join(report.lines())
    assert not run_forget(toys, ONE, follow=True).remaining
    assert KEY not in made.whole_table(SOURCE).column("key").to_pylist()
    assert audit(made, deep=True).sound
    assert tombstones_beside(Dataset(tmp_path / "new")).bar_row(KEY, None)


def test_what_an_earlier_forgetting_took_with_it_stays_in_derived_datasets(toys: Dataset, tmp_path: Path) -> None:
    made = derive(toys, tmp_path / "made")
    other = source_row(1, 0)["key"]
    both = Request(keys=frozenset([KEY, other]))
    forget(toys, both)
    assert [one.samples for one in relatives(toys, ONE)] == [1]
    forget_everywhere(toys, ONE)
    keys = made.whole_table(SOURCE).column("key").to_pylist()
    assert (KEY in keys, other in keys) == (False, True)
    forget_everywhere(toys, both)
    assert other not in made.whole_table(SOURCE).column("key").to_pylist()


def test_keys_found_by_a_link_are_forgotten_in_derived_datasets_that_do_not_tell_it(tmp_path: Path) -> None:
    toys, made = Dataset(tmp_path / "toys"), Dataset(tmp_path / "made")
    for dataset, reads, url in ((toys, (), "http://a.example/0"), (made, (Reads(toys, ("source",)),), None)):
        step = Step("select" if reads else "download", 1, {}, reads)
        run = StepRun(dataset, step)
        run.pending([0])
        out = run.shard(0)
        row = source_row(0, 0) | {"task": "text", "url": url}
        out.columns(SOURCE, pa.Table.from_pylist([row], SOURCE_SCHEMA))
        out.finish(1)
        run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    linked = Request(urls=frozenset(["http://a.example/0"]))
    forget(toys, linked)
    assert [one.samples for one in relatives(toys, linked)] == [1]
    forget_everywhere(toys, linked)
    assert made.total_rows == 0


def test_steps_stay_done_where_their_results_have_forgotten_the_same(toys: Dataset, tmp_path: Path) -> None:
    made = derive(toys, tmp_path / "made")
    forget(toys, ONE)
    write_scores(toys)  # would raise if it tried to write the scores again
    assert len(toys.commits()) == 3
    assert standing(made, select_step(toys)) is None  # it still holds the sample
    forget_everywhere(toys, ONE)
    assert standing(made, select_step(toys)) == made.commit(0)
    assert standing(made, Step("select", 2, {"all": True}, (Reads(toys, ("images", "source")),))) is None


@pytest.mark.parametrize("in_time", [True, False])
def test_columns_made_while_samples_were_forgotten_are_refused(
    toys: Dataset, in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether forgetting sees the finished shards, and deletes those with the sample, or they come just after."""
    run = StepRun(toys, Step("late", 1, {}, (Reads(toys, ("source",)),)))
    for shard in run.pending(toys.shard_numbers):
        keys = toys.table(SOURCE, shard, ["key"]).column("key")
        out = run.shard(shard)
        out.columns("late", pa.table({"key": keys, "value": pa.array(range(len(keys)), pa.int64())}))
        out.finish(len(keys))
    if not in_time:
        monkeypatch.setattr(pipelines.forget, "drop_leftovers", lambda *_: None)
    forget(toys, ONE)
    with pytest.raises(HarmonError, match=r"run it again") as raised:
        run.commit()
    assert isinstance(raised.value, Overtaken) != in_time
    report = audit(toys)
    assert report.sound, list(report.lines())


def test_leftovers_with_forgotten_samples_go_and_an_attempt_under_way_is_respected(
    toys: Dataset, tmp_path: Path
) -> None:
    half = Dataset(tmp_path / "half")
    write_all(half.root)
    run = StepRun(half, Step("download", 1, {"source": "more"}))
    run.pending([7, 8])
    for shard in (7, 8):
        out = run.shard(shard)
        row = source_row(shard, 4) | {"caption": f"left over {shard}"}
        out.columns(SOURCE, pa.Table.from_pylist([row], SOURCE_SCHEMA))
        out.finish(1)
    asked = Request(keys=frozenset([source_row(7, 4)["key"]]))
    forget(half, asked)
    assert run.finished() == [8]
    run.shard(9)  # opens a workspace, and is never finished
    with pytest.raises(HarmonError, match=r"an attempt at the step download .* is under way"):
        forget(half, Request(keys=frozenset([source_row(0, 0)["key"]])))


def test_what_a_killed_forgetting_kept_goes_and_one_under_way_is_respected(toys: Dataset) -> None:
    step = plan_forgetting(toys, ONE).step
    toys.store.put(step_path(step.key), step.identity)
    folder = toys.store.work(f".work/{step.key}/00001")
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "images.tar").write_bytes(picture(1, 0))
    other = Request(keys=frozenset([source_row(1, 0)["key"]]))
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HarmonError, match=r"another forgetting .* is under way"):
            forget(toys, other)
    forget(toys, other)
    assert picture(1, 0) not in bytes_below(toys.root)
    assert not folder.exists()


def test_a_forgetting_that_another_machine_commits_during_the_scan_loses_nothing(
    toys: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No claim is seen by another machine: its finished shards look like leftovers, until they are committed."""
    plan = plan_forgetting(toys, ONE)
    run = StepRun(toys, plan.step)
    toys.store.put(step_path(run.step.key), run.step.identity)
    for shard in run.pending(sorted(plan.shards)):
        pipelines.forget._rewrite(run, plan, shard)
    scan = pipelines.leftovers._holds

    def overtaken(*arguments: Any) -> bool:
        if toys.commit_of(run.step.key) is None:
            run.commit()
            delete_tombstoned(Dataset(toys.root))
        return scan(*arguments)

    monkeypatch.setattr(pipelines.leftovers, "_holds", overtaken)
    other = source_row(1, 0)["key"]
    before = set(toys.whole_table(SOURCE).column("key").to_pylist())
    forget(toys, Request(keys=frozenset([other])))
    assert [commit.step for commit in toys.commits()] == ["download", "score", "forget", "forget"]
    assert set(toys.whole_table(SOURCE).column("key").to_pylist()) == before - {KEY, other}
    report = audit(toys, deep=True)
    assert report.sound and not report.findings, list(report.lines())


def test_one_forgetting_at_a_time_works_on_a_dataset(toys: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = pipelines.forget._rewrite
    refused: list[str] = []

    def meanwhile(*arguments: Any) -> None:
        with pytest.raises(HarmonError, match=r"another forgetting in .* is under way") as raised:
            forget(Dataset(toys.root), Request(keys=frozenset([source_row(1, 0)["key"]])))
        refused.append(str(raised.value))
        (work,) = [mend for mend in plan_repair(toys, audit(toys)) if mend.path == ".work/forget"]
        ((_, problem),) = apply_repair([work])
        assert problem is not None and "a process is at work" in problem
        rewrite(*arguments)

    monkeypatch.setattr(pipelines.forget, "_rewrite", meanwhile)
    forget(toys, ONE)
    assert len(refused) == 1 and not (toys.root / ".work").exists()
    assert audit(toys, deep=True).findings == ()


def test_finished_shards_of_a_forgetting_that_stopped_are_not_written_again(
    toys: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = frozenset(source_row(shard, 1)["key"] for shard in range(SHARDS))
    rewrite = pipelines.forget._rewrite
    written: list[int] = []

    def stops(run: StepRun, plan: Plan, shard: int) -> None:
        if len(written) == 2:
            raise InterruptedError
        written.append(shard)
        rewrite(run, plan, shard)

    monkeypatch.setattr(pipelines.forget, "_rewrite", stops)
    with pytest.raises(InterruptedError):
        forget(toys, Request(keys=keys))
    finished = receipts(toys)
    monkeypatch.setattr(pipelines.forget, "_rewrite", lambda *those: (written.append(those[2]), rewrite(*those)))
    forget(toys, Request(keys=keys))
    assert written == list(range(SHARDS))
    assert finished.items() <= receipts(toys).items()


def test_a_file_is_kept_until_what_took_its_place_stands(toys: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    old = toys.entry(SOURCE, 1)
    assert old is not None
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.forget, "delete_tombstoned", lambda *_: None)
        forget(toys, ONE)
    new = toys.entry(SOURCE, 1)
    assert new is not None
    data = toys.store.read(new.path)
    toys.store.remove(new.path)
    with pytest.raises(HarmonError, match=r"1 files .* still stand .* absent or damaged"):
        forget(toys, ONE)
    assert toys.store.exists(old.path)
    toys.store.put(new.path, data)
    assert forget(toys, ONE) == []
    assert not toys.store.exists(old.path) and audit(toys, deep=True).findings == ()


LINK, SUM = "http://a.example/0", sha256_hex(b"forgotten bytes")


def linked(root: Path, row: int, **facts: str) -> StepRun:
    """One finished shard of one text row, not yet committed."""
    run = StepRun(Dataset(root), Step("download", 1, {"row": row}))
    run.pending([row])
    out = run.shard(row)
    out.columns(SOURCE, pa.Table.from_pylist([source_row(0, row) | {"task": "text"} | facts], SOURCE_SCHEMA))
    out.finish(1)
    return run


@pytest.mark.parametrize(
    ("request_", "facts"),
    [
        (Request(urls=frozenset([LINK])), {"url": LINK}),
        (Request(sha256=frozenset([SUM])), {"sha256": SUM}),
        (ONE, {"key": KEY}),
    ],
    ids=["url", "sha256", "key"],
)
@pytest.mark.parametrize("where", ["toys", "other"])
def test_a_sample_that_is_back_is_refused_at_the_commit_and_found_by_the_audit(
    request_: Request, facts: dict[str, str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another key where a link or bytes name it, in the dataset that forgot it or in one beside that."""
    linked(tmp_path / "toys", 0).commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    linked(tmp_path / "other", 0).commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    dataset = Dataset(tmp_path / where)
    run = linked(dataset.root, 3, **facts)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.forget, "drop_leftovers", lambda *_: None)  # the shard is finished just after
        forget(Dataset(tmp_path / "toys"), request_)
    assert audit(dataset).sound
    with pytest.raises(HarmonError, match=r"shard 3 holds samples that are forgotten"):
        run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    monkeypatch.setattr(pipelines.drafts, "tombstones_beside", lambda _: Tombstones())  # an older release
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    report = audit(dataset)
    assert not report.sound and report.counts == {"forgotten_row": 1}
    forget(dataset, request_)
    assert audit(dataset).sound and dataset.total_rows == 1


def test_an_audit_tells_of_a_dataset_beside_it_whose_forgettings_cannot_be_read(toys: Dataset) -> None:
    other = write_all(toys.root.parent / "other")
    other.store.local("manifest/000001.json").write_bytes(b"{")
    assert [(one.kind, one.path) for one in audit(toys).findings] == [("upstream_unreachable", "../other")]


@pytest.mark.parametrize("record", [b"{", b"[]", b"\xff"])
def test_work_of_a_step_whose_record_is_damaged_is_respected(toys: Dataset, record: bytes) -> None:
    key = "0" * 64
    toys.store.put(step_path(key), record)
    folder = toys.store.work(f".work/{key}/00001")
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    with pytest.raises(HarmonError, match="the step of an unknown name"):
        forget(toys, ONE)


def test_audit_tells_an_unfinished_deletion_and_a_sample_that_is_back(toys: Dataset) -> None:
    old = toys.entry(SOURCE, 1)
    assert old is not None
    data = toys.store.read(old.path)
    forget(toys, ONE)
    toys.store.put(old.path, data)
    report = audit(toys)
    assert not report.sound and report.counts == {"forgotten_file": 1}
    forget(toys, ONE)
    assert audit(toys).sound


def test_a_list_of_another_kind_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"{KEY}\n\nnot a key\n")
    with pytest.raises(ConfigurationError, match=r"line 3 of .*'not a key'"):
        read_request("keys", file)
    file.write_text(" \n")
    with pytest.raises(ConfigurationError, match="is empty"):
        read_request("urls", file)
    with pytest.raises(ConfigurationError, match="give --keys"):
        read_requests(keys=None)


def test_killed_forgetting_converges_to_the_undisturbed_content_hash(tmp_path: Path) -> None:
    undisturbed = write_all(tmp_path / "undisturbed" / "toys")
    keys = frozenset(source_row(shard, row)["key"] for shard in (0, 2) for row in (1, 4))
    forget(undisturbed, Request(keys=keys))
    expected = [commit.content_hash for commit in undisturbed.commits()]
    draw = random.Random(20250321)
    root = tmp_path / "killed" / "toys"
    kills = 0
    rounds = 0
    while kills < KILLS:
        root = tmp_path / f"round-{rounds}" / "toys"
        write_all(root)
        rounds += 1
        finished: dict[str, bytes] = {}
        while kills < KILLS and victim(root, keys, draw.randint(1, 45)) != 0:
            kills += 1
            now = receipts(Dataset(root))
            assert finished.items() <= now.items()  # a rerun goes on where it was: a new receipt tells another time
            finished = now
            assert {one.kind for one in audit(Dataset(root), deep=True).findings if not one.sound} <= {"forgotten_file"}
        forget(Dataset(root), Request(keys=keys))
        assert finished.items() <= receipts(Dataset(root)).items()
        assert [commit.content_hash for commit in Dataset(root).commits()] == expected
        report = audit(Dataset(root), deep=True)
        assert report.sound and not report.findings, list(report.lines())


def receipts(dataset: Dataset) -> dict[str, bytes]:
    """Path to bytes of every receipt."""
    names = [path for path in dataset.store.list("steps") if not path.endswith("step.json") and not is_temporary(path)]
    return {path: dataset.store.read(path) for path in names}


def victim(root: Path, keys: frozenset[str], at: int) -> int:
    """Exit code of a process that forgets `keys` and kills itself at its `at`-th fsync, link or unlink."""
    script = (
        "import os, pathlib, signal, sys\n"
        "sys.path.insert(0, 'tests/pipelines')\n"
        "from small_datasets import _die_at\n"
        "from pipelines.dataset import Dataset\nfrom pipelines.forget import forget\n"
        "from pipelines.request import Request\n"
        "root, at, *keys = sys.argv[1:]\n"
        "_die_at(int(at))\n"
        "forget(Dataset(root), Request(keys=frozenset(keys)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(root), str(at), *sorted(keys)]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, timeout=60)
    assert done.returncode in (0, -9)
    return done.returncode


def test_a_manifest_cannot_have_other_files_deleted(toys: Dataset) -> None:
    run = StepRun(
        toys, Step("forget", 1, {"keys": [], "urls_sha256": [], "sha256": [], "files": ["manifest/000000.json"]})
    )
    toys.store.put(f"steps/{run.step.key}/step.json", run.step.identity)
    run.commit()
    forget(toys, ONE)
    assert toys.store.exists("manifest/000000.json")
    assert "file_dropped" not in audit(toys).counts


def test_download_of_images_only_is_untouched_without_tombstones(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "alone")
    write_images(dataset, 1)
    assert tombstones_beside(dataset) == tombstones(dataset) == tombstones(Dataset(tmp_path / "none"))


def test_repair_deletes_what_a_killed_forgetting_left_and_plans_no_rerun_of_it(toys: Dataset) -> None:
    old = toys.entry("images", 1)
    assert old is not None
    data = toys.store.read(old.path)
    forget(toys, ONE)
    toys.store.put(old.path, data)
    new = toys.entry("score.length", 1)
    kept = toys.entry("score.length", 2)
    assert new is not None and kept is not None
    for entry in (new, kept):
        toys.store.local(entry.path).write_bytes(b"damaged")
    report = audit(toys)
    assert report.counts == {"forgotten_file": 1, "size_differs": 2}
    mends = {mend.path: mend for mend in plan_repair(toys, report)}
    assert {path: mend.action for path, mend in mends.items()} == {
        old.path: "delete",
        new.path: "restore",  # the rows that it was made from are gone
        kept.path: "restore",  # its step would have another key now
    }
    assert list(apply_repair([mends[old.path]])) == [(mends[old.path], None)]
    assert audit(toys).counts == {"size_differs": 2}


def test_a_receipt_that_is_lost_is_made_anew_for_a_forgetting_too(toys: Dataset) -> None:
    (commit,) = forget(toys, ONE)
    path = receipt_path(commit.step_key, 1)
    files = Receipt.from_bytes(toys.store.read(path), path).files
    toys.store.remove(path)
    report = audit(toys)
    assert report.counts == {"receipt_missing": 1}
    assert [problem for _, problem in apply_repair(plan_repair(toys, report))] == [None]
    assert Receipt.from_bytes(toys.store.read(path), path).files == files
    assert audit(toys, deep=True).findings == ()


def test_a_step_stays_done_without_the_receipt_of_a_shard_that_was_written_anew(toys: Dataset) -> None:
    forget(toys, ONE)
    first = toys.commit(0)
    toys.store.remove(receipt_path(first.step_key, 1))  # shard 1 is another commit's now
    step = Step(first.step, first.version, first.configuration)
    assert (done := StepRun(toys, step).committed) is not None
    assert done.number == 0
    toys.store.remove(receipt_path(first.step_key, 2))
    assert StepRun(toys, step).committed is None


def test_what_a_repair_set_aside_has_to_go_before_forgetting(toys: Dataset) -> None:
    kept = toys.root / ".work" / "damaged" / "images"
    kept.mkdir(parents=True)
    (kept / "00001.tar").write_bytes(b"?")
    with pytest.raises(HarmonError, match="delete it, then forget"):
        forget(toys, ONE)
