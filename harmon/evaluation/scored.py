"""Marks beside answers and pictures: column groups of the dataset that holds them.

exam.KEY8              what an examiner saw of each picture (harmon.evaluation.verdicts.COLUMNS)
score.READING-KEY8     what was read of each answer or picture, and what it counts
"""

from collections.abc import Sequence

import pyarrow as pa

from harmon.evaluation.asked import OnProgress
from harmon.evaluation.drawings import PROMPT, drawn_pictures
from harmon.evaluation.examiner import Examiner
from harmon.evaluation.marks import Mark
from harmon.evaluation.verdicts import COLUMNS
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import IMAGES
from pipelines.steps import Reads, Step, StepRun

EXAMINE, SCORE, VERSION = "benchmark-exam", "benchmark-score", 1

SCHEMA = pa.schema([("key", pa.string()), ("parsed", pa.string()), ("score", pa.float64())])


def keep_marks(dataset: Dataset, group: str, reading: str, marks: Sequence[Mark]) -> str:
    """Write the marks of every row, made from column group `group`; the name of their group."""
    step = Step(SCORE, VERSION, {"reading": reading}, (Reads(dataset, (group,)),))
    run = StepRun(dataset, step)
    name = f"score.{reading}-{step.key8}"
    if run.committed:
        return name
    start = 0
    starts = {}
    for shard in dataset.shard_numbers:
        starts[shard] = start
        start += dataset.rows(shard)
    for shard in run.pending(dataset.shard_numbers):
        keys = dataset.table(group, shard, ["key"]).column("key").to_pylist()
        some = marks[starts[shard] : starts[shard] + len(keys)]
        rows = [{"key": key, "parsed": one.parsed, "score": one.score} for key, one in zip(keys, some, strict=True)]
        output = run.shard(shard)
        output.columns(name, pa.Table.from_pylist(rows, SCHEMA))
        output.finish(rows_in=len(rows))
    run.commit()
    return name


def examine(
    dataset: Dataset, benchmark: str, examiner: Examiner, on_progress: OnProgress | None = None
) -> tuple[str, pa.Table]:
    """What `examiner` sees of every picture, kept as a column group: its name, and its rows, a picture each, in order.

    Raises:
        HarmonError: the examiner cannot look at all, or says something else of a picture than its benchmark's columns.
    """
    configuration = {"benchmark": benchmark, "examiner": dict(examiner.configuration)}
    step = Step(EXAMINE, VERSION, configuration, (Reads(dataset, (IMAGES, PROMPT)),))
    run = StepRun(dataset, step)
    group = f"exam.{step.key8}"
    if not run.committed:
        total, done = dataset.total_rows, 0
        schema = pa.schema(
            [("key", pa.string()), *COLUMNS[benchmark], ("status", pa.string()), ("reason", pa.string())]
        )
        pending = run.pending(dataset.shard_numbers)
        for shard in dataset.shard_numbers:
            if shard in pending:
                _examine_shard(run, dataset, shard, examiner, group, schema)
            done += dataset.rows(shard)
            if on_progress:
                on_progress(done, total)
        run.commit()
    return group, dataset.whole_table(group)


def _examine_shard(
    run: StepRun, dataset: Dataset, shard: int, examiner: Examiner, group: str, schema: pa.Schema
) -> None:
    pictures = drawn_pictures(dataset, shard)
    seen = examiner.examine(pictures, run.journal(shard))
    rows = [{**columns, "key": picture.sample} for picture, columns in zip(pictures, seen, strict=True)]
    if wrong := next((row for row in rows if set(row) != set(schema.names)), None):
        raise HarmonError(
            f"{examiner.name} tells of a picture {', '.join(sorted(wrong))}, where {', '.join(schema.names)} are read."
        )
    output = run.shard(shard)
    output.columns(group, pa.Table.from_pylist(rows, schema))
    output.finish(rows_in=len(rows))
