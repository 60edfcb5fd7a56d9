"""Repair: planned from an audit, done only when asked for, and only with bytes that are certainly the right ones."""

import contextlib
from collections.abc import Callable

import pytest
from small_datasets import write_all, write_images, write_scores

from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.repair import apply_repair, plan_repair
from pipelines.steps import StepRun


def path_of(dataset: Dataset, group: str, shard: int = 1) -> str:
    entry = dataset.entry(group, shard)
    assert entry is not None
    return entry.path


def spoil(dataset: Dataset, path: str) -> None:
    """One byte changed, the length kept."""
    data = bytearray(dataset.store.read(path))
    data[len(data) // 2] ^= 1
    dataset.store.remove(path)
    dataset.store.put(path, bytes(data))


def repair(dataset: Dataset) -> tuple[set[str], list[str]]:
    """The actions that were done, and what failed."""
    done = list(apply_repair(plan_repair(dataset, audit(dataset, deep=True))))
    return {mend.action for mend, _ in done}, [problem for _, problem in done if problem]


def step_of(dataset: Dataset, number: int) -> str:
    return f"steps/{dataset.commit(number).step_key}"


HEALED: dict[str, tuple[Callable[[Dataset], str], str]] = {
    "missing index": (lambda d: path_of(d, "images.index"), "rebuild_index"),
    "missing record of a step": (lambda d: f"{step_of(d, 1)}/step.json", "rebuild_record"),
    "missing receipt of new shards": (lambda d: f"{step_of(d, 0)}/00002.json", "rebuild_receipt"),
    "missing receipt of columns": (lambda d: f"{step_of(d, 1)}/00003.json", "rebuild_receipt"),
}


@pytest.mark.parametrize("harm", [spoil, lambda d, path: d.store.remove(path)], ids=["changed", "gone"])
@pytest.mark.parametrize(("place", "action"), HEALED.values(), ids=HEALED.keys())
def test_what_follows_from_the_rest_is_made_anew(
    toys: Dataset, place: Callable[[Dataset], str], action: str, harm: Callable[[Dataset, str], None]
) -> None:
    path = place(toys)
    before = toys.store.read(path)
    harm(toys, path)
    assert not audit(Dataset(toys.root), deep=True).sound
    assert repair(Dataset(toys.root)) == ({action}, [])
    report = audit(Dataset(toys.root), deep=True)
    assert report.sound, list(report.lines())
    if action != "rebuild_receipt":  # a receipt's seconds are gone for good, and belong to no hash
        assert toys.store.read(path) == before


RERUN = {"images": 0, "source": 0, "rejects.download": 0, "score.length": 1}


@pytest.mark.parametrize("group", RERUN)
def test_a_damaged_file_comes_back_by_running_its_step_again(toys: Dataset, group: str) -> None:
    head = toys.head
    assert head is not None
    path = path_of(toys, group)
    spoil(toys, path)
    damaged = toys.store.read(path)
    assert repair(Dataset(toys.root)) == ({"rerun"}, [])
    assert (toys.root / ".work" / "damaged" / path).read_bytes() == damaged  # nothing is thrown away
    again = Dataset(toys.root)
    assert not audit(again).sound
    write_images(again)
    write_scores(again)
    report = audit(Dataset(toys.root), deep=True)
    assert report.sound, list(report.lines())
    assert [commit.content_hash for commit in Dataset(toys.root).commits()][-1] == head.content_hash


def test_a_rerun_that_comes_out_otherwise_changes_nothing(toys: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(toys, "images")
    toys.store.remove(path)
    repair(Dataset(toys.root))
    monkeypatch.setattr("small_datasets.picture", lambda shard, row: b"other")
    with pytest.raises(HarmonError, match="came out differently than the commit that stands"):
        write_images(Dataset(toys.root))
    assert not toys.store.exists(path)


def test_a_step_under_repair_is_not_committed_until_its_shards_stand(toys: Dataset) -> None:
    toys.store.remove(path_of(toys, "score.length"))
    repair(Dataset(toys.root))
    dataset = Dataset(toys.root)
    run = StepRun(dataset, next(iter([_score_step(dataset)])))
    assert run.committed is None
    with pytest.raises(HarmonError, match="under repair and 1 shards"):
        run.commit()


def _score_step(dataset: Dataset):
    from small_datasets import score_step

    return score_step(dataset)


def test_what_no_program_can_mend_is_left_to_a_person(toys: Dataset) -> None:
    spoil(toys, path_of(toys, "download.telemetry"))
    manifest = toys.store.read("manifest/000000.json")
    toys.store.remove("manifest/000000.json")
    toys.store.put("manifest/000000.json", manifest.replace(b"CC0-1.0", b"CC0-1.1"))
    toys.store.put("notes.txt", b"?")
    plan = plan_repair(toys, audit(Dataset(toys.root), deep=True))
    assert {"manifest/000001.json", "notes.txt"} <= {mend.path for mend in plan if mend.action == "restore"}
    before = toys.store.sizes()
    assert list(apply_repair([mend for mend in plan if mend.action == "restore"])) == []
    assert toys.store.sizes() == before


def test_a_damaged_file_whose_commit_is_unreadable_is_left_to_a_person(toys: Dataset) -> None:
    path = path_of(toys, "images")
    manifest = toys.store.read("manifest/000000.json")
    spoil(toys, path)
    toys.store.remove("manifest/000000.json")
    toys.store.put("manifest/000000.json", b"{")
    plan = {mend.path: mend for mend in plan_repair(toys, audit(Dataset(toys.root), deep=True))}
    assert plan["manifest/000000.json"].action == plan[path].action == "restore"
    assert "manifest of the commit that wrote it cannot be read" in plan[path].detail and plan[path].do is None
    toys.store.remove("manifest/000000.json")
    toys.store.put("manifest/000000.json", manifest)
    assert repair(Dataset(toys.root)) == ({"rerun"}, [])  # with the manifest back, its step can be run again


def test_an_index_is_not_made_from_a_damaged_archive(toys: Dataset) -> None:
    tar = path_of(toys, "images")
    data = toys.store.read(tar)
    toys.store.remove(tar)
    toys.store.put(tar, data[:512] + b"\xff" * 512 + data[1024:-512])
    toys.store.remove(path_of(toys, "images.index"))
    actions, problems = repair(Dataset(toys.root))
    assert actions == {"rerun", "rebuild_index"}
    assert len(problems) == 1
    write_images(Dataset(toys.root))
    assert audit(Dataset(toys.root), deep=True).sound


def test_planning_changes_nothing(toys: Dataset) -> None:
    toys.store.remove(path_of(toys, "images"))
    toys.store.remove(f"{step_of(toys, 1)}/step.json")
    (toys.root / "manifest" / ".put-0123456789abcdef.tmp").write_bytes(b"torn")
    before = toys.store.sizes()
    plan = plan_repair(toys, audit(Dataset(toys.root)))
    assert {mend.action for mend in plan} == {"rerun", "rebuild_record", "delete"}
    assert toys.store.sizes() == before


def test_leftovers_go_unless_their_process_still_runs(toys: Dataset) -> None:
    (toys.root / "manifest" / ".put-0123456789abcdef.tmp").write_bytes(b"torn")
    run = StepRun(toys, _score_step(toys))
    run.journal(1).append({"row": 1})  # this process holds the shard
    actions, problems = repair(Dataset(toys.root))
    assert actions == {"delete"}
    assert len(problems) == 1 and "a process is at work" in problems[0]
    with contextlib.suppress(HarmonError):
        run._workspace(1).discard()
    repair(Dataset(toys.root))
    assert audit(Dataset(toys.root)).counts == {}


def test_repair_in_s3_keeps_a_copy_here(s3_root: str) -> None:
    dataset = write_all(f"{s3_root}/toys")
    path = path_of(dataset, "score.length")
    spoil(dataset, path)
    dataset.store.remove(path_of(dataset, "images.index", 2))
    assert repair(Dataset(dataset.root)) == ({"rerun", "rebuild_index"}, [])
    assert dataset.store.work(f".work/damaged/{path}").exists()
    write_scores(Dataset(dataset.root))
    report = audit(Dataset(dataset.root), deep=True)
    assert report.sound, list(report.lines())
