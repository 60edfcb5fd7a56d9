"""A small dataset with every kind of file, written through the real steps; as a script, the victim of kills."""

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import s3
from pipelines.canonical import sample_key
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
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
    """A step that writes new shards, with rejects, telemetry and a journal."""
    run = StepRun(dataset, download_step())
    if run.committed:
        return
    for shard in run.pending(range(shards)):
        journal = run.journal(shard)
        fetched = {entry["row"] for entry in journal.entries()}
        for row in range(0, ROWS, 3):
            if row not in fetched:
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
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})


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


def write_all(root: str | Path) -> Dataset:
    """Both steps; what is committed already is left alone."""
    dataset = Dataset(root)
    write_images(dataset)
    write_scores(dataset)
    return dataset


def column_step(dataset: Dataset, name: str) -> Step:
    return Step(name, 1, {}, (Reads(dataset, ("source",)),))


def write_column(dataset: Dataset, name: str, group: str | None = None) -> StepRun:
    """Every shard of a column step, not yet committed."""
    run = StepRun(dataset, column_step(dataset, name))
    for shard in run.pending(dataset.shard_numbers):
        keys = dataset.table("source", shard, ["key"])
        out = run.shard(shard)
        out.columns(group or name, keys.append_column("x", pa.array(range(keys.num_rows))))
        out.finish(rows_in=keys.num_rows)
    return run


# As a script


def _die_at(count: int) -> None:
    """Kill this process at its `count`-th fsync, link or S3 request: half of the time just before, half just after."""
    from botocore.client import BaseClient

    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync, os.link = deadly(os.fsync), deadly(os.link)
    BaseClient._make_api_call = deadly(BaseClient._make_api_call)


def _obey(order: dict[str, Any]) -> None:
    if at := order.get("die_at"):
        _die_at(at)
    if name := order.get("commit"):  # receipts stand; begin at the same moment as another
        dataset = Dataset(order["root"])
        run = StepRun(dataset, column_step(dataset, name))
        time.sleep(max(0.0, order["moment"] - time.time()))
        run.commit()
    else:
        write_all(order["root"])


def _serve() -> None:
    """For each line of orders, a fork that obeys it: its pid, then when asked its exit status, on stdout."""
    if "AWS_ENDPOINT_URL" in os.environ:  # forks inherit an S3 client that has no connection yet: making one is slow
        client = s3._client(os.getpid(), "")
        s3._client = lambda *_: client
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _obey(json.loads(line))
            except HarmonError as problem:
                print(f"refused: {problem}", file=sys.stderr, flush=True)
                os._exit(3)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        sys.stdin.readline()  # until it is asked for, the dead keep their pid
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
