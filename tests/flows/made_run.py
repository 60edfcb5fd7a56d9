"""A small run for tests of the report: real datasets made by real steps, and a run folder beside them.

Training metrics are invented; they stand in no dataset and leave the test's folder with it.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from filtering.clarity import measure
from filtering.geometry import Geometry
from filtering.rules import Threshold
from filtering.select import select
from filtering.selection import Selection
from flows.report import ReportInput, StandIn
from harmon.evaluation.run import EvaluationConfig
from harmon.evaluation.scenes import Asked, judge, score_answers, score_pictures, wanted_of
from harmon.training.stage import Departure
from pipelines.audit import audit
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.scenes import dense_caption, make_scene, questions, render, short_caption
from pipelines.steps import Reads, Step, StepRun
from pipelines.web import Planted

ROWS = 24
CAPTIONS = "caption.rewrite-v1-tiny-00000000"
HOSTILE = '<script>document.title="owned"</script><img src="http://example.com/beacon.png" onerror="alert(1)">'
PLANTED = (
    Planted("scenes", "bad-missing-0", "http://127.0.0.1:9/moved.jpg", "download", "dead_link"),
    Planted("scenes", "bad-html-0", "http://127.0.0.1:9/page.jpg", "download", "not_an_image"),
)


def png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def download(root: Path) -> Dataset:
    """Scenes and two bad rows, as the download step leaves them."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": "scenes"}))
    run.pending([0])
    output = run.shard(0)
    rows = []
    for index in range(ROWS):
        scene = make_scene(1, index, split="train")
        data = png(render(scene, 64))
        key = sample_key("scenes", f"scene-{index:06d}")
        output.images().add(key, data, "png", {"key": key})
        rows.append(
            dict.fromkeys(SOURCE_SCHEMA.names)
            | {
                "key": key,
                "source": "scenes",
                "row_id": f"scene-{index:06d}",
                "task": "image2text",
                "ext": "png",
                "width": 64,
                "height": 64,
                "bytes": len(data),
                "sha256": sha256_hex(data),
                "licence": "Apache-2.0",
                "terms_class": "open",
                "caption": HOSTILE if index == 0 else dense_caption(scene),
            }
        )
    output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    bad = [
        {"key": sample_key("scenes", one.row_id), "source": "scenes", "row_id": one.row_id, "url": one.url}
        | {"reason": one.reason, "detail": f"what was seen of {one.row_id}"}
        for one in PLANTED
    ]
    output.rejects(pa.Table.from_pylist(bad, REJECT_SCHEMA))
    output.finish(ROWS + len(bad))
    run.commit(terms={"scenes": {"licence": "Apache-2.0", "terms": "open"}})
    return dataset


def add_columns(dataset: Dataset, name: str, group: str, table: pa.Table) -> None:
    run = StepRun(dataset, Step(name, 1, {"group": group}, (Reads(dataset, ("images", "source")),)))
    run.pending([0])
    output = run.shard(0)
    output.columns(group, table)
    output.finish(table.num_rows)
    run.commit()


def rewrite(dataset: Dataset) -> None:
    keys = dataset.table("source", 0, ["key"]).column("key").to_pylist()
    failed = [index == ROWS - 1 for index in range(ROWS)]
    table = pa.table(
        {
            "key": keys,
            "text": pa.array(
                [None if bad else short_caption(make_scene(1, i)) for i, bad in enumerate(failed)],
                pa.string(),
            ),
            "status": ["failed" if bad else "ok" for bad in failed],
            "reason": pa.array(["too_long" if bad else None for bad in failed], pa.string()),
        }
    )
    add_columns(dataset, "rewrite", CAPTIONS, table)


def score(dataset: Dataset) -> None:
    images = dataset.images(0)
    keys = dataset.table("source", 0, ["key"]).column("key").to_pylist()
    values = [measure(np.asarray(Image.open(io.BytesIO(images.find(key).data)))).clarity for key in keys]
    table = pa.table({"key": keys, "clarity": pa.array(values, pa.float32())})
    add_columns(dataset, "clarity", "clarity", table)


def metrics(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True)
    lines = [
        {
            "step": step,
            "loss": {
                "text2image": 1 + 2 * math.exp(-step / 200),
                "image2text": 0.1 + 3 * math.exp(-step / 90),
            },
            "rate": {
                "encoder": 1e-4 * math.cos(step / steps * 1.5),
                "llm": 2e-5 * math.cos(step / steps * 1.5),
            },
            "samples": {"text": 0, "image2text": 8 * step, "text2image": 24 * step},
            "samples_per_second": 140.0,
            **({"text_sensitivity": 0.3 * step / steps} if step % 50 == 0 else {}),
        }
        for step in range(10, steps + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(folder: Path) -> dict[str, object]:
    """Scores of pictures that were rendered instead of generated, every fourth one of the wrong scene."""
    (folder / "generated").mkdir(parents=True)
    (folder / "asked").mkdir()
    config = EvaluationConfig(held_out=12, seen=6, two=6, asked=5)
    pictures, generation = [], {}
    for which in ("held_out", "seen", "two"):
        scenes = config.prompts(which)
        judged = []
        for index, scene in enumerate(scenes):
            shown = scenes[index - 1] if index % 4 == 3 else scene
            one, file = wanted_of(scene), f"generated/{which}-{index:04d}.png"
            (folder / file).write_bytes(png(render(shown, 64)))
            judged.append(judge(one, render(shown, 64)))
            pictures.append(
                {
                    "set": which,
                    "file": file,
                    "prompt": one.prompt,
                    "wanted": [" ".join(pair) for pair in one.pairs],
                }
                | {"seen": judged[-1].sight.say(), "colours": judged[-1].colours, "shapes": judged[-1].shapes}
                | {"whole": judged[-1].whole, "background": judged[-1].background}
            )
        generation[which] = score_pictures(judged).report()
    asked, lines = [], []
    for index in range(config.asked):
        scene = make_scene(config.seed, index, split="unseen")
        file = f"asked/{index:04d}.png"
        (folder / file).write_bytes(png(render(scene, 64)))
        for question in questions(scene):
            given = "" if question.kind == "position" else question.answer
            asked.append(Asked(question.kind, question.question, question.answer, given))
            lines.append(vars(asked[-1]) | {"right": asked[-1].right, "file": file})
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {
        "checkpoint": {"stage": "stage1-aaaaaaaa", "step": 600, "px": 64},
        "departures": [{"key": "sampling.clip_x0", "paper": None, "here": 3.0}],
        "generation": generation,
        "answers": [one.report() for one in score_answers(asked)],
        "pictures": pictures,
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    return scores


def make_run(root: Path) -> ReportInput:
    """Everything below `root`, as the demo leaves it."""
    scenes = download(root / "data" / "scenes")
    rewrite(scenes)
    score(scenes)
    values = sorted(scenes.whole_table("clarity").column("clarity").to_pylist())
    corpus = Dataset(root / "data" / "corpus")
    threshold = Threshold(group="clarity", column="clarity", at_least=values[3] + 1e-4)
    select(
        [scenes],
        corpus,
        Selection(geometry=Geometry(min_side=32), thresholds=(threshold,), carry=(CAPTIONS,)),
    )
    run = root / "runs" / "demo"
    metrics(run / "train" / "stage1-aaaaaaaa", 600)
    metrics(run / "train" / "stage2-bbbbbbbb", 300)
    evaluation(run / "evaluation")
    audits = {dataset.name: audit(dataset).to_json() for dataset in (scenes, corpus)}
    (run / "audit.json").write_text(json.dumps(audits))
    timings = [("download", "scenes", 90.0), ("train", "stage1", 245.0), ("download", "scenes", 12.5)]
    lines = [{"step": step, "subject": subject, "seconds": seconds} for step, subject, seconds in timings]
    (run / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": "cut')
    return ReportInput(
        title="The whole recipe, once",
        run=run,
        datasets=(scenes.root, corpus.root),
        planted=PLANTED,
        departures=(Departure("stage1.learning_rate.llm", 1e-5, 4e-4),),
        stand_ins=(
            StandIn(
                name="patch latent",
                instead_of="KL-16 autoencoder",
                consequence="A fixed linear map: pictures are blurry.",
            ),
        ),
    )
