"""A plan over very many shards (a thousand with HARMON_SOAK=1): the target count is met, in bounded memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from filtering.geometry import Geometry
from filtering.plan import plan
from filtering.repeats import Piece, losers
from filtering.rows import ShardRows
from filtering.selection import Selection
from pipelines.canonical import canonical_json
from pipelines.columns import SOURCE_SCHEMA, schema_of, write_columns
from pipelines.manifest import Commit, FileEntry, manifest_path
from tests.filtering.pictured import Row, write_rows

ROOT = Path(__file__).parents[2]
SHARDS, ROWS = (1000, 10_000) if os.environ.get("HARMON_SOAK") else (100, 500)

PLAN = """
import sys
from benchmarks.memory import peak_memory
from filtering.plan import plan
from filtering.select import Selection
from pipelines.dataset import Dataset
before = peak_memory()
take = {"group": "aesthetic.toy", "column": "score", "keep": "20%"}
made = plan([Dataset(sys.argv[1])], Selection(geometry={"min_side": 1}, take=take, prefer=("aesthetic",)))
print(made.kept, made.rows, (peak_memory() - before) / 2**20)
"""


def write(root: Path, rows: int) -> None:
    """SHARDS shards of `source` and one score, without pictures: a plan reads columns alone. Tied scores are common,
    and a quarter of the rows has the bytes of another one, half of those in another shard."""
    draw, files = np.random.default_rng(0), []
    scores = pa.schema([("key", pa.string()), ("score", pa.float32())])
    before = ""
    for shard in range(SHARDS):
        raw = draw.bytes(16 * rows).hex()
        keys = pa.array([raw[32 * n : 32 * n + 32] for n in range(rows)])
        known = {"key": keys, "source": pa.repeat("toy", rows), "task": pa.repeat("text2image", rows)}
        bytes_of = [raw[32 * n : 32 * n + 32] for n in range(rows)]
        for n in range(0, rows, 4):
            bytes_of[n] = before if n % 8 and before else bytes_of[n + 1]
        before = bytes_of[2]
        known["sha256"] = pa.array([one * 2 for one in bytes_of])
        columns = [known[f.name] if f.name in known else pa.nulls(rows, f.type) for f in SOURCE_SCHEMA]
        found = np.round(draw.normal(5, 1, rows), 2).astype(np.float32)
        tables = {
            "source": pa.table(columns, schema=SOURCE_SCHEMA),
            "aesthetic.toy": pa.table({"key": keys, "score": found}, schema=scores),
        }
        for group, table in tables.items():
            path = f"columns/{group}/00000000/{shard:05d}.parquet"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_columns(table, root / path)
            entry = {
                "group": group,
                "shard": shard,
                "path": path,
                "rows": rows,
                "bytes": 0,
                "sha256": "",
                "keys_sha256": "",
            }
            files.append(FileEntry(**entry))  # type: ignore[arg-type]
    schemas = {"source": schema_of(SOURCE_SCHEMA), "aesthetic.toy": schema_of(scores)}
    counts = {
        "rows_in": rows * SHARDS,
        "rows_out": rows * SHARDS,
        "rejected": {},
        "failed": {},
        "terms": {},
        "context": {},
    }
    told = {"number": 0, "parent": None, "step": "toy", "version": 1, "step_key": "0" * 64, "configuration": {}}
    commit = Commit(**told, inputs=(), files=tuple(files), schemas=schemas, **counts)  # type: ignore[arg-type]
    (root / "manifest").mkdir()
    (root / manifest_path(0)).write_bytes(canonical_json(commit.model_dump(mode="json")))


@pytest.mark.timeout(1200)
def test_a_target_share_of_many_shards_is_met_within_256_mebibytes(tmp_path: Path) -> None:
    write(tmp_path / "toy", ROWS)
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "toy")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kept, rows, mebibytes = (float(one) for one in done.stdout.split())
    print(f"kept {kept:,.0f} of {rows:,.0f}, {mebibytes:.0f} MiB above the imports")
    assert rows == ROWS * SHARDS
    left = rows - SHARDS * len(range(0, ROWS, 4))
    assert abs(kept - left / 5) <= left / 5 / 1000
    assert mebibytes <= 256


def test_a_plan_is_the_same_whether_columns_stay_between_its_passes_or_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, found = write_rows(tmp_path / "toys", [Row(f"r{n}", n % 5) for n in range(20)], 7), []
    for most in (1 << 14, 10, 0):
        monkeypatch.setattr("filtering.plan.HELD", most)
        made = plan([dataset], Selection(geometry=Geometry(min_side=1), prefer=("pixels",)))
        found.append(({place: codes.tolist() for place, codes in made.codes.items()}, made.kept_by_source))
        assert not made.held
    assert found[0] == found[1] == found[2]
    assert found[0][1] == {"toys": 5}


@pytest.mark.parametrize("seed", range(4))
def test_of_equal_rows_the_best_stays_however_few_are_compared_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("filtering.repeats.AT_ONCE", 20)
    monkeypatch.setattr("filtering.repeats.TOGETHER", 5)
    draw = np.random.default_rng(seed)
    pairs = draw.integers(0, (16, 3), (60, 2)).tolist()
    values = [f"{a:x}{'0' * 30}{b:x}{'0' * 32}" for a, b in pairs]  # of some only the first 64 bits are equal
    worths = draw.integers(0, 3, 60).astype(float)
    dataset = write_rows(tmp_path / "toys", [Row(f"r{n}", n, data=b"") for n in range(60)], 7)
    keys = dataset.whole_table("source")["key"].to_pylist()
    rows, expected = dict(zip(keys, values, strict=True)), {}
    for value in set(values):
        own = sorted((row for row in range(60) if values[row] == value), key=lambda row: (-worths[row], row))
        expected |= {row: keys[own[0]] for row in own[1:]}

    class Told(ShardRows):
        def column(self, group: str, name: str) -> pa.ChunkedArray:
            found = super().column(group, name)
            return (
                pa.chunked_array([[rows[key] for key in super().column("source", "key").to_pylist()]])
                if (name == "sha256")
                else found
            )

    def pieces() -> Iterator[Piece]:
        first = 0
        for shard in dataset.shard_numbers:
            told = Told(dataset, shard)
            yield Piece(told, first, np.ones(len(told), bool))
            first += len(told)

    def worth(shard: ShardRows) -> list[np.ndarray]:
        begin = 7 * shard.shard
        return [worths[begin : begin + len(shard)]]

    found = losers(pieces, ("source", "sha256"), 60, worth)
    assert {row: found.winner(row) for row in found.rows.tolist()} == expected
