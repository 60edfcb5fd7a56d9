"""A small dataset of scenes with dense captions, and engines to rewrite them with."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.scenes import dense_caption, make_scene
from pipelines.steps import Step, StepRun
from recaption.engines import Answer
from recaption.prompt import PLACE, Sampling, load_prompt

SHARDS, ROWS = 2, 20  # in each shard: row 0 is text, row 1 has a class name, row 2 no caption, the rest is dense
DENSE = SHARDS * (ROWS - 3)
QWEN = Path("harmon/parts/demo/qwen")


def write_scenes(root: Path) -> Dataset:
    """Rows as the scenes source has them; the pictures are bytes that nobody looks at here."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": "scenes"}))
    for shard in run.pending(range(SHARDS)):
        output = run.shard(shard)
        rows = [source_row(shard * ROWS + row, row) for row in range(ROWS)]
        for row in rows:
            if row["task"] != "text":
                output.images().add(str(row["key"]), b"a picture", "jpg", {})
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(rows))
    run.commit({"scenes": {"licence": "CC0-1.0"}})
    return dataset


def source_row(index: int, row: int) -> dict[str, str | None]:
    task = {0: "text", 1: "text2image"}.get(row, "image2text")
    caption = {0: None, 1: "red circle", 2: "  "}.get(row, dense_caption(make_scene(5, index)))
    key = sample_key("scenes", f"scene-{index:06d}")
    return {"key": key, "source": "scenes", "row_id": f"scene-{index:06d}", "task": task, "caption": caption}


class FirstSentence:
    """An engine that is no model: it answers with the caption's first sentence, and counts what it is asked."""

    batch_rows = 8

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._batches_left = dies_after

    def answer(self, messages: Sequence[str], sampling: Sampling) -> list[Answer]:
        if self._batches_left == 0:
            raise ConnectionError("the server died")
        if self._batches_left is not None:
            self._batches_left -= 1
        self.asked += messages
        before = load_prompt("rewrite-v1").text.partition(PLACE)[0]
        texts = [message.removeprefix(before).partition(".")[0] + "." for message in messages]
        return [Answer(text, None, "stop", 10, 5, 0.01, 1, "here") for text in texts]
