"""A small dataset with every kind of file, written through the real steps; as a script, the victim of kills.

`python small_datasets.py ROOT [N]` writes it at ROOT; with N, it kills itself at its Nth fsync or link.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.canonical import sample_key
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Reads, Step, StepRun

SHARDS = 4
ROWS = 6  # per shard: of the rows listed, number 4 is text and number 5 a dead link

SCORES = pa.schema([("key", pa.string()), ("score", pa.float64()), ("status", pa.string()), ("reason", pa.string())])


def picture(shard: int, row: int) -> bytes:
    """Bytes that stand for an image; every third has a length that fills its tar blocks exactly."""
    return hashlib.sha256(f"{shard}/{row}".encode()).digest() * (16 if row % 3 == 0 else 40 + row)


def source_row(shard: int, row: int) -> dict[str, Any]:
    row_id = f"{shard}-{row}"
    task = "text" if row == 4 else "text2image"
    return {
        "key": sample_key("toys", row_id),
        "source": "toys",
        "row_id": row_id,
        "task": task,
        "caption": row_id,
    }


def download_step() -> Step:
    return Step("download", 1, {"source": "toys"})


def write_images(dataset: Dataset, shards: int = SHARDS) -> None:
    """A step that writes new shards, with rejects, telemetry, a journal and scratch."""
    run = StepRun(dataset, download_step())
    if run.committed:
        return
    for shard in run.pending(range(shards)):
        journal, scratch = run.journal(shard), run.scratch(shard)
        fetched = {entry["row"] for entry in journal.entries()}
        for row in range(0, ROWS, 3):
            if row not in fetched:
                (scratch / f"{row}").write_bytes(picture(shard, row))
                journal.append({"row": row}, {"row": row + 1}, {"row": row + 2})
        out = run.shard(shard)
        rows = [source_row(shard, row) for row in range(ROWS - 1)]
        for number, row in enumerate(rows):
            if row["task"] != "text":
                out.images().add(row["key"], picture(shard, number), "jpg", {"caption": row["caption"]})
        out.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        seconds = [time.monotonic()] * len(rows)
        out.columns("download.telemetry", pa.table({"key": [row["key"] for row in rows], "seconds": seconds}))
        lost = source_row(shard, ROWS - 1)
        reject = {name: lost[name] for name in ("key", "source", "row_id")} | {"reason": "dead_link"}
        out.rejects(pa.Table.from_pylist([reject], REJECT_SCHEMA))
        out.finish(rows_in=ROWS)
    run.commit({"toys": {"licence": "CC0-1.0"}})


def score_step(dataset: Dataset) -> Step:
    return Step("score", 1, {"head": "length"}, (Reads(dataset, ("images", "source")),))


def write_scores(dataset: Dataset) -> None:
    """A column step in which the text row of each shard fails."""
    run = StepRun(dataset, score_step(dataset))
    if run.committed:
        return
    for shard in run.pending(dataset.shard_numbers):
        images = dataset.images(shard)
        rows = []
        for key in dataset.table("source", shard, ["key"]).column("key").to_pylist():
            image = images.find(key)
            score = (
                {"score": float(len(image.data)), "status": "ok"} if image else {"status": "failed", "reason": "text"}
            )
            rows.append({"key": key, **score})
        out = run.shard(shard)
        out.columns("score.length", pa.Table.from_pylist(rows, SCORES))
        out.finish(rows_in=len(rows))
    run.commit()


def write_all(root: Path) -> Dataset:
    """Both steps; what is committed already is left alone."""
    dataset = Dataset(root)
    write_images(dataset)
    write_scores(dataset)
    return dataset


def _die_at(count: int) -> None:
    """Kill this process at its `count`-th fsync or link: half of the time just before, half just after."""
    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments)
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync, os.link = deadly(os.fsync), deadly(os.link)


if __name__ == "__main__":
    print("ready", flush=True)
    if len(sys.argv) > 2:
        _die_at(int(sys.argv[2]))
    write_all(Path(sys.argv[1]))
