"""Small datasets with real pictures of scenes, as the download step leaves them."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.scenes import dense_caption, make_scene, render
from pipelines.steps import Reads, Step, StepRun


@dataclass(frozen=True)
class Row:
    """One row to write: a scene's picture of this size, or given bytes, or text alone."""

    name: str
    scene: int = 0
    size: tuple[int, int] = (128, 128)  # width, height
    data: bytes | None = None
    text: bool = False
    turn: str | None = None
    """What the user says: of a text `Hello` where nothing else is given."""

    @property
    def extension(self) -> str:
        """As the download sniffs it."""
        return "webp" if (self.data or b"")[8:12] == b"WEBP" else "jpg"

    @property
    def picture(self) -> bytes:
        """The encoded picture."""
        return self.data if self.data is not None else jpeg(self.scene, self.size)


TINY_CLIP = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Weights, in `folder`, of the network that open_clip then knows as `tiny-stand-in`; as wide as ViT-L/14's."""
    import open_clip
    import torch

    (folder / "tiny-stand-in.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-stand-in.json")
    torch.manual_seed(seed)
    torch.save(open_clip.create_model("tiny-stand-in").state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@cache
def jpeg(index: int, size: tuple[int, int]) -> bytes:
    """Scene `index` of seed 7, stretched to `size`."""
    picture = Image.fromarray(render(make_scene(7, index), 128)).resize(size)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=92)
    return stream.getvalue()


def encoded(pixels: Any) -> bytes:
    """An RGB array as PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_rows(root: Path, rows: Sequence[Row], rows_per_shard: int = 5) -> Dataset:
    """The rows as a dataset named after the folder, its source too."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": dataset.name}))
    shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]
    for number in run.pending(range(len(shards))):
        output = run.shard(number)
        table = [source_row(dataset.name, row) for row in shards[number]]
        for row, values in zip(shards[number], table, strict=True):
            if not row.text:
                view = {name: values[name] for name in ("caption", "width", "height")}
                output.images().add(values["key"], row.picture, row.extension, view)
        output.columns("source", pa.Table.from_pylist(table, SOURCE_SCHEMA))
        output.finish(len(table))
    run.commit({dataset.name: {"licence": "CC0-1.0", "terms": "open"}})
    return dataset


def source_row(source: str, row: Row) -> dict[str, Any]:
    """Values of the `source` columns."""
    identity = {"key": sample_key(source, row.name), "source": source, "row_id": row.name}
    if row.text:
        return identity | {"task": "text", "conversations": [{"role": "user", "text": row.turn or "Hello"}]}
    turns = [{"role": "user", "text": row.turn}, {"role": "assistant", "text": "Yes."}] if row.turn else None
    return identity | {
        "conversations": turns,
        "task": "image2text",
        "url": f"http://127.0.0.1/{row.name}",
        "width": row.size[0],
        "height": row.size[1],
        "sha256": hashlib.sha256(row.picture).hexdigest(),
        "caption": dense_caption(make_scene(7, row.scene)),
    }


def write_captions(dataset: Dataset, group: str) -> None:
    """A caption group, made up from the row's name, of which every third row failed."""
    run = StepRun(dataset, Step("rewrite", 1, {"group": group}))
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        rows = dataset.table("source", shard, ["key", "row_id"]).to_pylist()
        keys = [row["key"] for row in rows]
        texts = [None if number % 3 == 2 else f"about {row['row_id']}" for number, row in enumerate(rows)]
        columns = {
            "key": pa.array(keys, pa.string()),
            "text": pa.array(texts, pa.string()),
            "status": pa.array(["ok" if text else "failed" for text in texts], pa.string()),
            "reason": pa.array([None if text else "empty" for text in texts], pa.string()),
        }
        output.columns(group, pa.table(columns))
        output.finish(len(keys))
    run.commit()


def write_scores(dataset: Dataset, group: str, scores: Sequence[float | None]) -> None:
    """A group with the same scores in every shard."""
    write_column(dataset, group, "score", pa.array(scores, pa.float32()))


def write_column(dataset: Dataset, group: str, name: str, values: pa.Array) -> None:
    """A group of one column besides the key, with the same values in every shard."""
    run = StepRun(dataset, Step("score", 1, {"group": group}, (Reads(dataset, ("source",)),)))
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        output.columns(group, pa.table({"key": dataset.table("source", shard).column("key"), name: values}))
        output.finish(len(values))
    run.commit()
