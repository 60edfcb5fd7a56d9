"""Reading an older version of a dataset, also where forgetting has taken its files away since.

Forgetting changes no value of the rows that stay, so the newest files of a shard say everything about an older
version of it but the samples that are gone; their keys stand in the rejects of the forgettings since.
"""

from collections.abc import Sequence

import pyarrow as pa

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import FORGET, REJECTS, SOURCE


def table_then(dataset: Dataset, group: str, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard of a column group as `dataset` (see `Dataset.at`) has it, without samples forgotten since.

    Raises HarmonError where the file is gone for another reason.
    """
    entry = dataset.entry(group, shard)
    if entry is None or dataset.store.exists(entry.path):
        return dataset.table(group, shard, columns)
    now = Dataset(dataset.root)
    successor = now.entry(group, shard)
    if successor is None or successor.path == entry.path:
        raise HarmonError(f"{entry.path} of {dataset.root} is gone and was not forgotten; run `harmon audit`")
    return now.table(group, shard, columns)


def keys_then(dataset: Dataset, shard: int) -> list[str]:
    """Keys of one shard as `dataset` has it, those of samples forgotten since at the end."""
    entry = dataset.entry(SOURCE, shard)
    keys: list[str] = table_then(dataset, SOURCE, shard, ["key"]).column("key").to_pylist()
    if entry is None or dataset.store.exists(entry.path):
        return keys
    now = Dataset(dataset.root)
    known = {group.group for group in (dataset.head.files if dataset.head else ())}
    for later in now.head.files if now.head else ():
        if later.shard == shard and later.group.startswith(f"{REJECTS}{FORGET}-") and later.group not in known:
            keys += now.table(later.group, shard, ["key"]).column("key").to_pylist()
    return keys
