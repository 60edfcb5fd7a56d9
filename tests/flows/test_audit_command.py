"""`harmon audit` as a person or a program calls it: exit codes, history, repair, and datasets in S3."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from pipelines.dataset import Dataset
from tests.pipelines.small_datasets import SHARDS, write_all, write_images
from tests.s3_server import s3_root, s3_server

__all__ = ["s3_root", "s3_server"]


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["audit", *arguments], standalone_mode=True)


@pytest.fixture
def toys(tmp_path: Path) -> Dataset:
    return write_all(tmp_path / "toys")


def test_exit_codes_are_the_verdict(toys: Dataset) -> None:
    assert audit(str(toys.root)).exit_code == 0
    assert audit(str(toys.root), "--deep", "--json").exit_code == 0
    toys.store.put("notes.txt", b"?")
    found = audit(str(toys.root), "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["counts"] == {"foreign_file": 1}
    assert audit(f"{toys.root}/nowhere").exit_code == 3
    assert audit(str(toys.root), "--decode", "0.5").exit_code == 2
    assert audit(str(toys.root), "--apply").exit_code == 2
    assert audit(str(toys.root), "--history", "--deep").exit_code == 2
    assert audit("gs://bucket/toys").exit_code == 2


def test_history_lists_what_each_commit_did_and_who_made_it_where(toys: Dataset) -> None:
    text = audit(str(toys.root), "--history")
    assert text.exit_code == 0
    assert "0 download v1" in text.stdout
    assert "24 in, 20 out, 4 rejected or failed" in text.stdout
    assert "from toys@0" in text.stdout
    commits = json.loads(audit(str(toys.root), "--history", "--json").stdout)["commits"]
    heads = toys.commits()
    assert [one["step"] for one in commits] == ["download", "score"]
    assert [one["content_hash"] for one in commits] == [commit.content_hash for commit in heads]
    assert [one["configuration_sha256"] for one in commits] == [commit.configuration_sha256 for commit in heads]
    first, second = commits
    assert first["rejected"] == {"dead_link": SHARDS}
    assert second["inputs"][0] == {"dataset": "toys", "commit": 0, "content_hash": heads[0].content_hash}
    assert first["bytes"] + second["bytes"] == sum(entry.bytes for entry in heads[1].files)
    for name in ("user", "host", "started_at", "finished_at", "seconds"):
        assert first[name] == heads[0].context[name]
    assert audit(f"{toys.root}/nowhere", "--history").exit_code == 3


def test_repair_is_planned_then_done_then_finished_by_running_the_step(toys: Dataset) -> None:
    index, tar = (toys.entry(group, 1) for group in ("images.index", "images"))
    assert index is not None and tar is not None
    toys.store.remove(index.path)
    before = toys.store.sizes()
    planned = audit(str(toys.root), "--repair")
    assert planned.exit_code == 1
    assert "rebuild_index" in planned.stdout and "add --apply" in planned.stdout
    assert toys.store.sizes() == before
    done = audit(str(toys.root), "--repair", "--apply", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["repair"] == [
        {
            "action": "rebuild_index",
            "path": index.path,
            "detail": "the index is made anew from its archive, which must give the recorded checksum",
            "automatic": True,
            "problem": None,
        }
    ]
    toys.store.remove(tar.path)
    half = audit(str(toys.root), "--repair", "--apply")
    assert half.exit_code == 1
    assert "running step download again" in half.stdout
    write_images(Dataset(toys.root))
    assert audit(str(toys.root), "--deep").exit_code == 0


def test_a_dataset_in_s3_is_audited_by_its_url(s3_root: str) -> None:
    dataset = write_all(f"{s3_root}/toys")
    found = audit(f"{s3_root}/toys", "--deep", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["dataset"] == f"{s3_root}/toys"
    dataset.store.put("notes.txt", b"?")
    assert audit(f"{s3_root}/toys").exit_code == 1
    assert audit(f"{s3_root}/nowhere").exit_code == 3
