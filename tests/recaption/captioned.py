"""A small dataset of scenes with dense captions, and engines to rewrite them with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.scenes import dense_caption, make_scene
from pipelines.steps import Step, StepRun
from recaption.engines import Answer, Answered, Question
from recaption.prompt import PLACE, load_prompt

SHARDS, ROWS = 2, 20  # in each shard: row 0 is text, row 1 has a class name, row 2 no caption, the rest is dense
DENSE = SHARDS * (ROWS - 3)
QWEN = Path("harmon/parts/demo/qwen")


def write_scenes(root: Path, changed: Mapping[int, str] | None = None, image: bytes = b"a picture") -> Dataset:
    """Rows as the scenes source has them; `changed`: captions of some rows, by their number over all shards."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": "scenes", "name": root.name}))
    for shard in run.pending(range(SHARDS)):
        output = run.shard(shard)
        rows = [source_row(shard * ROWS + row, row) for row in range(ROWS)]
        for number, row in enumerate(rows, start=shard * ROWS):
            row["caption"] = (changed or {}).get(number, row["caption"])
            if row["task"] != "text":
                output.images().add(str(row["key"]), image, "jpg", {})
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
    """An engine that is no model: it answers with the caption's first sentence, and counts what it is asked.

    `says`: what it answers instead, from the caption and the draw. It dies after `dies_after` lots.
    """

    version = "first-sentence 1"

    def __init__(
        self,
        dies_after: int | None = None,
        batch_rows: int = 8,
        says: Callable[[str, int], str] = lambda caption, draw: caption.partition(".")[0] + ".",
    ) -> None:
        self.batch_rows = batch_rows
        self.asked: list[str] = []
        self.questions: list[Question] = []
        self._says = says
        self._lots_left = dies_after

    def answers(self, lots: Iterator[Sequence[Question]]) -> Iterator[Answered]:
        for lot in lots:
            if self._lots_left == 0:
                raise ConnectionError("the server died")
            if self._lots_left is not None:
                self._lots_left -= 1
            self.asked += [question.message for question in lot]
            self.questions += lot
            yield [(question, self._answer(question)) for question in lot]

    def _answer(self, question: Question) -> Answer:
        before = load_prompt("rewrite-v1").text.partition(PLACE)[0]
        text = self._says(question.message.removeprefix(before), question.draw)
        return Answer(text, None, "stop", 10, 5, 0.01, 1, "here")
