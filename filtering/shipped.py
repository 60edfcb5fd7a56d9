"""Scores and embeddings that a source ships with its list, as a column group of the downloaded dataset.

PixelProse ships watermark, toxicity and aesthetic scores, PD12M CLIP embeddings (DATASETS.md 2 and 9). A table is
joined by the row id that the catalogue names, or by the address. Shipped embeddings count only where they verify: those
of some pictures are computed again and have to agree.
"""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from filtering.embedding import Clip, ClipEmbedder
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 1
MEMORY = "1GB"  # of the join; what is larger goes to DuckDB's own files on disk


class Shipped(Settings):
    """A Parquet file with one row per sample."""

    file: Path
    group: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Column group to write, such as `shipped.pixelprose`, or `clip.vit-l-14-quickgelu-float32` for embeddings."""
    columns: tuple[str, ...]
    """Numeric columns that go along; `embedding` is a list of numbers, kept as fp16."""
    on: str = "row_id"
    """Column of the file with what `by` holds."""
    by: str = Field(default="row_id", pattern=r"^(row_id|url|sha256|key)$")
    """Column of `source` that it is joined with."""


def shipped_step(dataset: Dataset, settings: Shipped) -> Step:
    """The step that writes the column group `settings.group`."""
    if not settings.file.is_file():
        raise ConfigurationError(f"There is no file {settings.file} with shipped scores.")
    told = settings.model_dump(mode="json") | {"file": file_sha256(settings.file)}
    return Step("shipped", STEP_VERSION, told, (Reads(dataset, (SOURCE,)),))


def write_shipped(dataset: Dataset, settings: Shipped, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the shipped columns; a row that the file does not know fails with `not_shipped`.

    Raises:
        ConfigurationError: the file is absent, lacks a column, or names a sample twice.
    """
    run = StepRun(dataset, shipped_step(dataset, settings), on_progress)
    if run.committed:
        return run.committed
    _check(settings)
    with duckdb.connect(config={"memory_limit": MEMORY, "threads": 1}) as database:
        for shard in run.pending(dataset.shard_numbers):
            output = run.shard(shard)
            output.columns(settings.group, _joined(database, dataset, shard, settings))
            output.finish(dataset.rows(shard))
    return run.commit()


def verify_embeddings(dataset: Dataset, group: str, clip: Clip, pictures: int = 16) -> float:
    """Lowest cosine between stored embeddings and those that `clip` gives, over the first pictures of the dataset.

    Below about 0.99 the shipped ones come from other weights or another preprocessing, and no head may read them.
    Raises HarmonError where no picture has both.
    """
    embedder, lowest, left = ClipEmbedder(clip), 1.0, pictures
    for shard in dataset.shard_numbers:
        if not left or dataset.entry(IMAGES, shard) is None:
            continue
        images = dataset.images(shard)
        for row in dataset.table(group, shard).to_pylist():
            image = images.find(row["key"]) if row["embedding"] else None
            if image is None or not left:
                continue
            theirs, ours = (
                np.array(row["embedding"], np.float64),
                embedder.embed(np.stack([embedder.pixels(image.data)]))[0],
            )
            lowest = min(lowest, float(theirs @ ours / (np.linalg.norm(theirs) * np.linalg.norm(ours))))
            left -= 1
    if left == pictures:
        raise HarmonError(f"No picture of {dataset.root} has an embedding in '{group}'; there is nothing to verify.")
    return lowest


def _check(settings: Shipped) -> None:
    names = pq.read_schema(settings.file).names
    if missing := [name for name in (settings.on, *settings.columns) if name not in names]:
        raise ConfigurationError(f"{settings.file} has no column {', '.join(missing)}; it has {', '.join(names)}.")
    ids = pq.read_table(settings.file, columns=[settings.on]).column(0)
    if len(pc.unique(ids)) != len(ids):
        raise ConfigurationError(f"{settings.file} names some samples twice in its column {settings.on}.")


def _joined(database: duckdb.DuckDBPyConnection, dataset: Dataset, shard: int, settings: Shipped) -> pa.Table:
    keys = dataset.table(SOURCE, shard, list(dict.fromkeys(["key", settings.by])))
    wanted = keys.append_column("place", pa.array(np.arange(keys.num_rows)))
    database.register("wanted", wanted)
    names = ", ".join(f"shipped.{_quoted(name)}" for name in settings.columns)
    joined = database.sql(
        f"SELECT wanted.key AS key, {names}, shipped.{_quoted(settings.on)} IS NOT NULL AS there FROM wanted "
        f"LEFT JOIN read_parquet(?) AS shipped ON wanted.{_quoted(settings.by)} = shipped.{_quoted(settings.on)} "
        "ORDER BY wanted.place",
        params=[str(settings.file)],
    )
    found: pa.Table = joined.to_arrow_table()
    there = found.column("there").to_pylist()
    columns = {"key": found.column("key").cast(pa.string())}
    columns |= {name: _typed(found.column(name), name, settings.file) for name in settings.columns}
    columns["status"] = pa.array(["ok" if one else "failed" for one in there], pa.string())
    columns["reason"] = pa.array([None if one else "not_shipped" for one in there], pa.string())
    return pa.table(columns)


def _typed(column: pa.ChunkedArray, name: str, file: Path) -> pa.ChunkedArray:
    """Numbers as float32 or int64, embeddings as fp16, texts as they are."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(pa.float32())).cast(pa.list_(pa.float16()))
    if pa.types.is_floating(kind):
        return column.cast(pa.float32())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    raise ConfigurationError(f"The column {name} of {file} holds {kind}; only numbers, texts and embeddings are kept.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
