"""Two processes that commit to one dataset at the same moment: both stand, or one wins and the other says why."""

import os
import time
from pathlib import Path

import pytest
from small_datasets import write_column, write_images
from test_crash import root_of
from victims import Victim

from pipelines.audit import audit
from pipelines.dataset import Dataset

ROUNDS = 200 if os.environ.get("HARMON_SOAK") else 20
HEAD_START = 0.02  # seconds until both begin: both are at their first look by then


@pytest.mark.parametrize("place", ["local", "s3"])
def test_racing_commits_of_two_processes_corrupt_nothing(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = root_of(place, tmp_path, request)
    refused = 0
    with Victim(tmp_path / "first") as first, Victim(tmp_path / "second") as second:
        for number in range(ROUNDS):
            dataset = Dataset(f"{base}/{number}/toys")
            write_images(dataset, shards=1)
            same_group = number % 2 == 1
            for name in ("first", "second"):
                write_column(dataset, name, "same" if same_group else name)
            moment = time.time() + HEAD_START
            first.start(str(dataset.root), commit="first", moment=moment)
            second.start(str(dataset.root), commit="second", moment=moment)
            statuses = sorted([first.wait(), second.wait()])
            committed = [commit.step for commit in Dataset(dataset.root).commits()[1:]]
            if same_group:
                assert statuses == [0, 3]
                assert committed in (["first"], ["second"])
                refused += 1
            else:
                assert statuses == [0, 0]
                assert sorted(committed) == ["first", "second"]
            report = audit(Dataset(dataset.root))
            assert report.sound, list(report.lines())
        sentences = (first.errors.read_text() + second.errors.read_text()).splitlines()
    assert len(sentences) == refused
    assert all("nothing is ever rewritten" in sentence for sentence in sentences)
