"""A column group that measures each picture of a dataset by itself, one row a sample."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from filtering.groups import check_free
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import StepRun

RowOf = Callable[[str, bytes | None], Mapping[str, object]]
"""The row of a key and its picture's bytes, None where the sample has no picture."""


def write_measured(run: StepRun, group: str, schema: pa.Schema, row_of: RowOf) -> Commit:
    """Write `group` for every row of every shard that is not done, and commit it."""
    if run.committed:
        return run.committed
    dataset = run.dataset
    check_free(dataset, group, run.step)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        keys = dataset.table(SOURCE, shard, ["key"]).column("key").to_pylist()
        images = dataset.images(shard) if dataset.entry(IMAGES, shard) else None
        rows = [row_of(key, image.data if images and (image := images.find(key)) else None) for key in keys]
        output.columns(group, pa.Table.from_pylist(rows, schema=schema))
        output.finish(len(keys))
    return run.commit()
