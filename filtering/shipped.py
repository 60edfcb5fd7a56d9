"""Scores and embeddings that a source ships with its list, as a column group of the downloaded dataset.

PixelProse ships watermark, toxicity and aesthetic scores, PD12M CLIP embeddings (DATASETS.md 2 and 9). A table is
joined by the row id that the catalogue names, or by the address. Shipped embeddings become a group that heads read
only where they verify: those of some pictures are computed again and have to agree.
"""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from filtering.embedding import EMBED, Clip, ClipEmbedder
from filtering.groups import check_free, writer_of
from filtering.vectors import Vectors, stored, unit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 2
PICTURES = 16  # whose embeddings are computed again, from as many shards
AGREE = 0.99  # cosine at least, of every one: fp16, bfloat16 and resizers differ by less, other weights by far more
CLIP, VERIFIED = "clip", "verified"
MEMORY = "1GB"  # of the join; what is larger goes to DuckDB's own files on disk


class Shipped(Settings):
    """A Parquet file with one row per sample."""

    file: Path
    group: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Column group to write, such as `shipped.pixelprose`. `clip` stands for the embeddings that a recipe's `embed`
    would make: they are written once they verify, and not computed."""
    columns: tuple[str, ...]
    """Numeric columns that go along; `embedding` is a list of numbers, kept as fp16."""
    id: str = "row_id"
    """Column of the file with what `by` holds."""
    by: str = Field(default="row_id", pattern=r"^(row_id|url|sha256|key)$")
    """Column of `source` that it is joined with."""
    sources: tuple[str, ...] = ()
    """Sources that it is of: datasets without rows of them do not get the columns. Empty: all datasets."""

    @property
    def embeds(self) -> bool:
        """Whether it says to be embeddings that heads read."""
        return self.group.partition(".")[0] == CLIP

    def group_for(self, clip: Clip | None) -> str:
        """The column group that is written, beside embeddings by `clip`.

        Raises ConfigurationError for embeddings whose weights are not named, or that are called otherwise.
        """
        if not self.embeds:
            return self.group
        if clip is None:
            raise ConfigurationError(
                f"'{self.group}' from {self.file} are embeddings for heads to read, which have to verify: name the "
                "weights in columns.embed, or call the group shipped.NAME."
            )
        if self.group not in (CLIP, clip.group) or "embedding" not in self.columns:
            raise ConfigurationError(
                f"Shipped embeddings go to the group '{clip.group}', in the column 'embedding': {self.file} has "
                f"'{self.group}' with {', '.join(self.columns)}; write `group: clip` and `columns: [embedding]`."
            )
        return clip.group


def shipped_step(dataset: Dataset, settings: Shipped, clip: Clip | None = None) -> Step:
    """The step that writes the column group `settings.group_for(clip)`. Of embeddings it says the weights by which
    they verified, since it is not committed otherwise."""
    if not settings.file.is_file():
        raise ConfigurationError(f"There is no file {settings.file} with shipped scores.")
    told = settings.model_dump(mode="json") | {"file": file_sha256(settings.file), "group": settings.group_for(clip)}
    if settings.embeds and clip:
        told[VERIFIED] = clip.sha256
    groups = (SOURCE, IMAGES) if settings.embeds and dataset.entries(IMAGES) else (SOURCE,)
    return Step("shipped", STEP_VERSION, told, (Reads(dataset, groups),))


def write_shipped(
    dataset: Dataset, settings: Shipped, on_progress: ProgressCallback | None = None, clip: Clip | None = None
) -> Commit:
    """Write the shipped columns; a row that the file does not know fails with `not_shipped`.

    Embeddings are compared with those of `clip` first; how well they agree stands in the commit's context.

    Raises:
        ConfigurationError: the file is absent, lacks a column, names a sample twice, or is a group of embeddings
            without the weights that it says to come from.
        HarmonError: embeddings come from other weights or another preprocessing.
    """
    run, group = StepRun(dataset, shipped_step(dataset, settings, clip), on_progress), settings.group_for(clip)
    if run.committed:
        return run.committed
    check_free(dataset, group, run.step)
    _check(settings)
    with duckdb.connect(config={"memory_limit": MEMORY, "threads": 1}) as database:
        notes = {}
        if settings.embeds and clip:
            notes = {"lowest_cosine": _verified(database, dataset, settings, clip)}
        for shard in run.pending(dataset.shard_numbers):
            output = run.shard(shard)
            output.columns(group, _joined(database, dataset, shard, settings))
            output.finish(dataset.rows(shard))
    return run.commit(notes=notes)


def has_embeddings_of(dataset: Dataset, clip: Clip) -> bool:
    """Whether the group `clip.group` stands, by these weights: computed with them, or shipped and verified."""
    if not dataset.entries(clip.group):
        return False
    by = writer_of(dataset, clip.group)
    return by is not None and clip.sha256 in (
        by.configuration.get("weights") if by.step == EMBED else None,
        by.configuration.get(VERIFIED) if by.step == "shipped" else None,
    )


def _verified(database: duckdb.DuckDBPyConnection, dataset: Dataset, settings: Shipped, clip: Clip) -> float:
    """Lowest cosine between shipped embeddings and those that `clip` gives, of the first pictures that have one in
    some shards. Raises HarmonError where they do not agree, or no picture has one."""
    embedder, lowest, shards = ClipEmbedder(clip), 2.0, [n for n in dataset.shard_numbers if dataset.entry(IMAGES, n)]
    some = shards if len(shards) <= PICTURES else [shards[len(shards) * n // PICTURES] for n in range(PICTURES)]
    for shard in some:
        table, images = _joined(database, dataset, shard, settings), dataset.images(shard)
        halves, there = stored(table.column("embedding"))
        left = -(-PICTURES // len(some))
        for row, theirs in zip(there.tolist(), unit(halves), strict=True):
            image = images.find(table.column("key")[row].as_py()) if left else None
            if image is not None:
                ours = embedder.embed(np.stack([embedder.pixels(image.data)]))[0]
                lowest, left = min(lowest, _cosine(theirs, ours)), left - 1
        images.close()
    if lowest > 1.5:
        raise HarmonError(f"No picture of {dataset.root} has an embedding in {settings.file}; leave it out.")
    if lowest < AGREE:
        raise HarmonError(
            f"The embeddings in {settings.file} are not those of {clip.weights}: the cosine to what it gives falls to "
            f"{lowest:.3f} (at least {AGREE} is needed); leave the file out, and they are computed."
        )
    return lowest


def _cosine(one: Vectors, other: Vectors) -> float:
    return float(one @ other) if one.shape == other.shape else 0.0


def _check(settings: Shipped) -> None:
    names = pq.read_schema(settings.file).names
    if missing := [name for name in (settings.id, *settings.columns) if name not in names]:
        raise ConfigurationError(f"{settings.file} has no column {', '.join(missing)}; it has {', '.join(names)}.")
    ids = pq.read_table(settings.file, columns=[settings.id]).column(0)
    if len(pc.unique(ids)) != len(ids):
        raise ConfigurationError(f"{settings.file} names some samples twice in its column {settings.id}.")


def _joined(database: duckdb.DuckDBPyConnection, dataset: Dataset, shard: int, settings: Shipped) -> pa.Table:
    keys = dataset.table(SOURCE, shard, list(dict.fromkeys(["key", settings.by])))
    wanted = keys.append_column("place", pa.array(np.arange(keys.num_rows)))
    database.register("wanted", wanted)
    names = ", ".join(f"shipped.{_quoted(name)}" for name in settings.columns)
    joined = database.sql(
        f"SELECT wanted.key AS key, {names}, shipped.{_quoted(settings.id)} IS NOT NULL AS there FROM wanted "
        f"LEFT JOIN read_parquet(?) AS shipped ON wanted.{_quoted(settings.by)} = shipped.{_quoted(settings.id)} "
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
