"""A writer killed with SIGKILL, whenever, and run again makes the dataset that an undisturbed one makes."""

import os
import random
import time
from pathlib import Path

import pytest
from small_datasets import write_all
from victims import Victim

from pipelines.audit import audit
from pipelines.dataset import Dataset

KILLS = 200 if os.environ.get("HARMON_SOAK") else 15


def root_of(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A folder of its own, on local disk or on the S3 server."""
    return str(tmp_path) if place == "local" else str(request.getfixturevalue("s3_root"))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_killed_writer_converges_to_the_undisturbed_content_hash(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = root_of(place, tmp_path, request)
    undisturbed = write_all(tmp_path / "undisturbed" / "toys")
    expected = [commit.content_hash for commit in undisturbed.commits()]
    draw = random.Random(20250321)
    kills = rounds = 0
    with Victim(tmp_path / "errors") as victim:
        victim.start(f"{base}/timed/toys")
        began = time.monotonic()
        assert victim.wait() == 0
        seconds = time.monotonic() - began
        while kills < KILLS:
            rounds += 1
            root = f"{base}/round-{rounds}/toys"
            while kills < KILLS:
                # every other kill is at an exact fsync, link or request, the rest at a random time
                at_a_call = kills % 2 == 0
                victim.start(root, die_at=draw.randint(1, 60) if at_a_call else 0)
                if not at_a_call:
                    time.sleep(draw.uniform(0, seconds))
                    victim.kill()
                if victim.wait() == 0:
                    break  # finished before it could be killed: the next round starts afresh
                kills += 1
                if Dataset(root).store.is_there():
                    assert audit(Dataset(root), deep=True).sound  # leftovers are never damage
            victim.start(root)
            assert victim.wait() == 0
            dataset = Dataset(root)
            assert [commit.content_hash for commit in dataset.commits()] == expected
            report = audit(dataset, deep=True)
            assert report.sound, list(report.lines())
            assert dataset.total_rows == undisturbed.total_rows
