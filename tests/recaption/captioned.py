"""A small dataset of scenes with dense captions, and engines to rewrite them with."""

import os
import subprocess
import sys
import time
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


def write_scenes(
    root: Path,
    changed: Mapping[int, str] | None = None,
    image: Callable[[int], bytes] = lambda number: b"a picture",
    shards: int = SHARDS,
    rows: int = ROWS,
) -> Dataset:
    """Rows as the scenes source has them; `changed`: captions of some rows, by their number over all shards."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": "scenes", "name": root.name}))
    for shard in run.pending(range(shards)):
        output = run.shard(shard)
        made = [source_row(shard * rows + row, row) for row in range(rows)]
        for number, row in enumerate(made, start=shard * rows):
            row["caption"] = (changed or {}).get(number, row["caption"])
            if row["task"] != "text":
                output.images().add(str(row["key"]), image(number), "jpg", {})
        output.columns("source", pa.Table.from_pylist(made, SOURCE_SCHEMA))
        output.finish(len(made))
    run.commit({"scenes": {"licence": "CC0-1.0", "terms": "open"}})
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
        self.batch_rows = self.batch_pictures = batch_rows
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


def run_killed(root: object, address: str, model: str, concurrency: int, when: Callable[[], bool]) -> None:
    """rewrite-v1 in a process of its own, which is killed with -9 once `when()` holds."""
    script = (
        "import sys\n"
        "from pipelines.dataset import Dataset\nfrom recaption.captions import write_captions\n"
        "from recaption.language_model import served_model\nfrom recaption.prompt import load_prompt\n"
        "from recaption.recaption import Recaption\nfrom recaption.vllm_engine import VllmEngine\n"
        "root, address, model, concurrency = sys.argv[1:]\n"
        "write_captions(Dataset(root), Recaption(load_prompt('rewrite-v1'), served_model(model)),\n"
        "    lambda: VllmEngine([address], model, int(concurrency)))\n"
    )
    command = [sys.executable, "-c", script, str(root), address, model, str(concurrency)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not when() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert child.poll() is None, "it ended before it could be killed"
    child.kill()
    child.wait()
