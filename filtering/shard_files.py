"""The files of one shard of a selection: pictures by random access, columns, rejects, JSON views."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.buckets import BUCKET, Buckets
from filtering.captions import CHOSEN, chosen_captions
from filtering.layout import DATASET, MEMBER, SHARD, Layout, schemas_of
from filtering.resize import is_of_bytes
from filtering.selection import Selection
from filtering.shuffle import Reader
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import SOURCE
from pipelines.shards import ImageShard
from pipelines.steps import ShardOutput

OPEN = 64  # image shards that a worker holds open: each is a memory map and 8 bytes an image
VIEW_LENGTH = 16  # longer lists, such as embeddings, are no scores and stay out of the view


class Shards:
    """Writes shards from the shuffled rows. Any shard can be written by any process."""

    def __init__(self, datasets: Sequence[Dataset], selection: Selection, layout: Layout) -> None:
        self._datasets = datasets
        self._selection = selection
        self._layout = layout
        self._kept = Reader(layout.folder / "kept")
        self._dropped = Reader(layout.folder / "dropped")
        self._groups = list(schemas_of(datasets, selection.groups))
        self._images = lru_cache(maxsize=OPEN)(self._opened)
        heads = [dataset.head for dataset in datasets]
        self._from = [
            {"dataset": dataset.name, "commit": head.number if head else -1}
            for dataset, head in zip(datasets, heads, strict=True)
        ]

    def write(self, output: ShardOutput, shard: int) -> None:
        """Images, columns, rejects and receipt of one shard."""
        wide = self._kept.rows(*self._layout.kept_in(shard))
        assert wide is not None  # no shard is laid out without rows
        source = _part(wide, SOURCE).cast(SOURCE_SCHEMA)
        groups = {name: _part(wide, name) for name in self._groups}
        if self._selection.caption_shares:
            groups[CHOSEN] = chosen_captions(source, groups, self._selection.caption_shares, self._selection.seed)
        if (buckets := self._selection.buckets) is not None:
            groups[BUCKET] = bucket_table(source, buckets)
        source = self._write_images(output, wide, source, groups)
        if buckets is not None and self._selection.resize is not None:
            groups[BUCKET] = bucket_table(source, buckets)  # of the sizes that were written
        output.columns(SOURCE, source)
        for name, table in groups.items():
            output.columns(name, table)
        rejects = self._dropped.rows(*self._layout.dropped_in(shard))
        if rejects is None:
            rejects = REJECT_SCHEMA.empty_table()
        output.rejects(rejects.select(REJECT_SCHEMA.names))
        output.finish(wide.num_rows + rejects.num_rows)

    def _write_images(
        self, output: ShardOutput, wide: pa.Table, source: pa.Table, groups: Mapping[str, pa.Table]
    ) -> pa.Table:
        """Copy the pictures, bytes untouched unless a resize is asked for; returns `source` with the sizes written.

        What the view said of a picture that was made smaller is said anew, or left out.
        """
        places = zip(*(wide.column(name).to_pylist() for name in (DATASET, SHARD, MEMBER)), strict=True)
        rows = source.select(["key", "task", "width", "height", "bytes", "ext"]).to_pylist()
        views = _views(groups, len(rows))
        for row, (dataset, shard, member), told in zip(rows, places, views, strict=True):
            if row["task"] == "text":
                continue
            image = self._images(dataset, shard).read(member) if member >= 0 else None
            if image is None or image.key != row["key"]:
                raise HarmonError(
                    f"The row {row['key']} has no image in {self._datasets[dataset].root}; run `harmon audit`."
                )
            data, extension, view = image.data, image.extension, image.view
            if self._selection.resize is not None:
                data, extension, width, height = self._selection.resize.apply(data, extension, row["key"])
                if data is not image.data:
                    row |= {"width": width, "height": height, "bytes": len(data), "ext": extension}
                    view, told = self._of_smaller(view, row), told | self._bucket_of(width, height)
            output.images().add(row["key"], data, extension, view | told | {"from": self._from[dataset]})
        if self._selection.resize is not None:
            for name in ("width", "height", "bytes", "ext"):
                at, field = source.schema.get_field_index(name), source.schema.field(name)
                source = source.set_column(at, field, pa.array([row[name] for row in rows], field.type))
        return source

    def _of_smaller(self, view: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """What the view still says of a picture that was made smaller."""
        kept = {name: value for name, value in view.items() if name != BUCKET}
        kept |= {name: row[name] for name in ("width", "height", "bytes", "ext") if name in view}
        if "scores" in view:
            kept["scores"] = {group: told for group, told in view["scores"].items() if not is_of_bytes(group)}
        return kept

    def _bucket_of(self, width: int, height: int) -> dict[str, Any]:
        if self._selection.buckets is None:
            return {}
        return {BUCKET: self._selection.buckets.assign(np.array([width]), np.array([height]))[0].tolist()}

    def _opened(self, dataset: int, shard: int) -> ImageShard:
        return self._datasets[dataset].images(shard)


def bucket_table(source: pa.Table, buckets: Buckets) -> pa.Table:
    """key, width and height of each row's bucket; null for a row without a size."""
    sizes = [source.column(name).cast(pa.float64()).to_numpy() for name in ("width", "height")]
    found = buckets.assign(*sizes).astype(np.int32)
    without = found[:, 0] == 0
    sides = {name: pa.array(found[:, at], mask=without) for at, name in enumerate(("width", "height"))}
    return pa.table({"key": source.column("key"), **sides})


def _part(wide: pa.Table, group: str) -> pa.Table:
    start = f"{group}/"
    names = [name for name in wide.column_names if name.startswith(start)]
    return wide.select(names).rename_columns([name.removeprefix(start) for name in names])


def _views(groups: Mapping[str, pa.Table], count: int) -> list[dict[str, Any]]:
    """What the JSON view of each row says besides what it said before: captions, scores, bucket."""
    views: list[dict[str, Any]] = [{} for _ in range(count)]
    for group, table in groups.items():
        for view, row in zip(views, table.to_pylist(), strict=True):
            if group == CHOSEN:
                if row["text"] is not None:
                    view |= {"caption": row["text"], "caption_version": row["version"]}
            elif group.startswith("caption."):
                if row["text"] is not None:
                    view.setdefault("captions", {})[group] = row["text"]
            elif group == BUCKET:
                view |= {"bucket": [row["width"], row["height"]]} if row["width"] else {}
            elif told := {name: value for name, value in row.items() if _is_score(name, value)}:
                view.setdefault("scores", {})[group] = told
    return views


def _is_score(name: str, value: object) -> bool:
    """Whether a value belongs into the view: a finite number, or a short list of them (a crop box)."""
    if name in ("key", "status", "reason") or isinstance(value, bool):
        return False
    if isinstance(value, list):
        return 0 < len(value) <= VIEW_LENGTH and all(_is_score("", one) for one in value)
    return isinstance(value, int | float) and bool(np.isfinite(value))
