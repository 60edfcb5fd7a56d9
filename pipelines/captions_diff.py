"""How two versions of the captions of the same samples differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE
from pipelines.past import table_then

EXAMPLES = 5
MEASURED = 20_000  # pairs whose edit distance is taken: those of the smallest keys, and keys are hashes
LONGEST = 1000  # characters of a text that its edit distance is taken from


@dataclass(frozen=True)
class CaptionChange:
    """Captions of one group beside those of another, over the samples that have both.

    Lengths are in characters. The edit distance (Levenshtein) is in UTF-8 bytes, over the first LONGEST
    characters of `measured` pairs; `edit_share` is it over the longer of the two texts.
    """

    before: str
    after: str
    pairs: int
    only_before: int
    only_after: int
    changed: int
    mean_length_before: float | None
    mean_length_after: float | None
    measured: int
    mean_edit_distance: float | None
    mean_edit_share: float | None
    examples: tuple[tuple[str, str, str], ...]
    """Key, text before, text after."""

    def lines(self) -> Iterator[str]:
        """The comparison for a person."""
        yield f"captions {self.before} -> {self.after}: {self.pairs:,} samples have both"
        if self.only_before or self.only_after:
            yield f"    {self.only_before:,} have only the first, {self.only_after:,} only the second"
        if self.pairs:
            yield f"    {self.changed:,} changed ({self.changed / self.pairs:.1%})"
            yield f"    mean length {self.mean_length_before:.1f} -> {self.mean_length_after:.1f} characters"
            yield (
                f"    mean edit distance {self.mean_edit_distance:.1f}, {self.mean_edit_share:.1%} of the longer text "
                f"({self.measured:,} pairs measured)"
            )
        for key, before, after in self.examples:
            yield f"      {key}  {before}"
            yield f"      {' ' * 29}->  {after}"


def compare_captions(
    before: Dataset, after: Dataset, groups: tuple[str, str], database: duckdb.DuckDBPyConnection
) -> CaptionChange:
    """Compare the texts of group `groups[0]` of `before` with those of `groups[1]` of `after`, joined by key.

    Raises ConfigurationError where a version has no such group, or the group no texts.
    """
    for table, dataset, group in (("old_texts", before, groups[0]), ("new_texts", after, groups[1])):
        _load(table, dataset, group, database)
    run = database.execute
    run(
        "CREATE OR REPLACE VIEW texts AS SELECT key, o.text AS a, n.text AS b "
        "FROM old_texts o JOIN new_texts n USING (key)"
    )
    counts = run(
        "SELECT count(*) FILTER (a IS NOT NULL AND b IS NOT NULL), count(*) FILTER (a IS NOT NULL AND b IS NULL), "
        "count(*) FILTER (a IS NULL AND b IS NOT NULL), count(*) FILTER (a <> b) FROM texts"
    ).fetchall()[0]
    lengths = run("SELECT avg(length(a)), avg(length(b)) FROM texts WHERE a IS NOT NULL AND b IS NOT NULL").fetchall()[
        0
    ]
    edits = run(
        "SELECT count(*), avg(d), avg(d / greatest(strlen(a), strlen(b), 1)) FROM "
        "(SELECT a, b, levenshtein(a, b) AS d FROM "
        f"(SELECT left(a, {LONGEST}) AS a, left(b, {LONGEST}) AS b FROM texts "
        f"WHERE a IS NOT NULL AND b IS NOT NULL ORDER BY key LIMIT {MEASURED}))"
    ).fetchall()[0]
    examples = run(f"SELECT key, left(a, 200), left(b, 200) FROM texts WHERE a <> b ORDER BY key LIMIT {EXAMPLES}")
    return CaptionChange(
        before=groups[0],
        after=groups[1],
        pairs=counts[0],
        only_before=counts[1],
        only_after=counts[2],
        changed=counts[3],
        mean_length_before=lengths[0],
        mean_length_after=lengths[1],
        measured=edits[0],
        mean_edit_distance=edits[1],
        mean_edit_share=edits[2],
        examples=tuple((key, before, after) for key, before, after in examples.fetchall()),
    )


def _load(table: str, dataset: Dataset, group: str, database: duckdb.DuckDBPyConnection) -> None:
    """Table of key and text, filled a shard at a time."""
    column = "caption" if group == SOURCE else "text"
    head = dataset.head
    if head is None or column not in head.schemas.get(group, {}):
        texts = [name for name, schema in (head.schemas if head else {}).items() if "text" in schema]
        raise ConfigurationError(f"{dataset.root} has no captions {group!r}; it has {', '.join([SOURCE, *texts])}")
    database.execute(f"CREATE OR REPLACE TABLE {table} (key VARCHAR, text VARCHAR)")
    for shard in [entry.shard for entry in dataset.entries(group)]:
        rows = table_then(dataset, group, shard, ["key", column])
        database.register("shard_texts", pa.table({"key": rows.column("key"), "text": rows.column(column)}))
        database.execute(f"INSERT INTO {table} FROM shard_texts")
        database.unregister("shard_texts")
