"""Audit at the size it is for: 50 million rows in 5,000 shards, and deep reading against bare checksumming.

python -m benchmarks.audit [--rows MILLIONS] [--folder DIR]

The dataset is synthetic: keys, sources, scores, indexes and manifests are real files; archives are holes of the right
size, which a shallow audit only measures. Each audit runs in a process of its own, whose peak memory is taken.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.memory import peak_memory
from benchmarks.pictures import make_pictures, make_view
from pipelines.audit import audit
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA, conform, schema_of, write_columns
from pipelines.dataset import Dataset
from pipelines.manifest import (
    IMAGES,
    INDEX,
    SOURCE,
    Commit,
    FileEntry,
    Receipt,
    group_path,
    manifest_path,
    receipt_path,
    step_path,
)
from pipelines.steps import Reads, Step, StepRun
from pipelines.storage import file_sha256

ROWS_PER_SHARD = 10_000
SAMPLE_BYTES = 100_352  # of an archive: a 98 KiB picture with its headers, in whole blocks
SCORE = "aesthetic.benchmark"
GOAL_SECONDS, GOAL_GIGABYTES, GOAL_DEEP = 120.0, 1.5, 0.80
ROUNDS = 5


def main() -> None:
    """Print seconds, CPU-seconds and peak memory of shallow audits, and the share of bare checksumming reached."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=float, default=50.0, help="millions of rows of the largest dataset")
    options.add_argument("--folder", type=Path, help="where to work; 60 bytes a row are needed")
    options.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--quick", action="store_true", help="deep reading alone, with few images")
    given = options.parse_args()
    if given.one:
        print(json.dumps(_audit_one(given.one)))
        return
    folder = Path(tempfile.mkdtemp(prefix="audit-", dir=given.folder))
    try:
        if not given.quick:
            shallow(folder, given.rows)
        deep(folder, images=400 if given.quick else 4_000)
    finally:
        shutil.rmtree(folder)


def shallow(folder: Path, millions: float) -> None:
    """Audits of 1/50, 1/5 and the whole of the rows; the time per row should stay the same."""
    rates: dict[int, float] = {}
    for shards in (int(millions * 100 * share) for share in (0.02, 0.2, 1.0)):
        dataset = make_dataset(folder / str(shards), shards)
        seen = _audit_in_process(dataset.root)
        rates[shards] = seen["cpu"] / shards
        print(
            f"shallow audit of {shards * ROWS_PER_SHARD:,} rows in {shards:,} shards: {seen['seconds']:.1f} s, "
            f"{seen['cpu']:.1f} CPU-s, peak {seen['gigabytes']:.2f} GB, {'sound' if seen['sound'] else 'UNSOUND'}"
        )
        shutil.rmtree(folder / str(shards))
    first, last = min(rates), max(rates)
    print(f"CPU time per row at {last:,} shards is {rates[last] / rates[first]:.2f}x that at {first:,} (linear: 1.0)")
    print(f"goals for the largest: at most {GOAL_SECONDS:.0f} s and {GOAL_GIGABYTES} GB on two idle cores")


def deep(folder: Path, images: int) -> None:
    """A deep audit of real archives against sha256 of the same files, alternating, CPU-seconds, medians."""
    dataset = make_archives(folder / "pictures", images)
    head = dataset.head
    assert head is not None
    files = [dataset.store.local(entry.path) for entry in head.files]
    audit(dataset, deep=True)  # so that what is imported at its first use is
    shares = []
    for _ in range(ROUNDS):
        bare = _cpu(lambda: [file_sha256(path) for path in files])
        whole = _cpu(lambda: audit(dataset, deep=True))
        shares.append(bare / whole)
    size = sum(entry.bytes for entry in head.files) / 1e6
    print(
        f"deep audit of {size:,.0f} MB in {images:,} images: {statistics.median(shares):.0%} of the speed of bare "
        f"checksumming (rounds {', '.join(f'{share:.0%}' for share in shares)}; goal {GOAL_DEEP:.0%})"
    )
    shutil.rmtree(folder / "pictures")


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _audit_one(root: Path) -> dict[str, Any]:
    began = time.monotonic()
    report = audit(Dataset(root))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "sound": report.sound,
        "seconds": time.monotonic() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "gigabytes": peak_memory() / 1e9,
    }


def _audit_in_process(root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.audit", "--one", str(root)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    seen: dict[str, Any] = json.loads(answer.stdout)
    return seen


def make_dataset(root: Path, shards: int) -> Dataset:
    """A dataset of two commits: rows with (hollow) archives, and a column of scores."""
    dataset = Dataset(root)
    download = Step("download", 1, {"source": "synthetic"})
    files = [_shard(root, download.key, shard) for shard in range(shards)]
    _commit(dataset, download, files, {SOURCE: schema_of(SOURCE_SCHEMA)}, None)
    score = Step("score", 1, {"head": "synthetic"}, (Reads(dataset, (SOURCE,)),))
    columns = [(_scores(root, score.key, shard, entries[0]),) for shard, entries in enumerate(files)]
    _commit(dataset, score, columns, {SCORE: {"key": "string", "score": "double"}}, dataset.head)
    return dataset


def _keys(shard: int) -> bytes:
    """The keys of one shard, one after the other."""
    return np.random.default_rng(shard).bytes(16 * ROWS_PER_SHARD).hex().encode()


def _shard(root: Path, key: str, shard: int) -> tuple[FileEntry, ...]:
    """One shard's files: source, index, and an archive that is a hole."""
    text = _keys(shard)
    table = _source(text)
    source = root / group_path(SOURCE, key, shard)
    source.parent.mkdir(parents=True, exist_ok=True)
    write_columns(table, source)
    tar, index = root / group_path(IMAGES, key, shard), root / group_path(INDEX, key, shard)
    tar.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.arange(ROWS_PER_SHARD + 1, dtype="<u8") * SAMPLE_BYTES
    index.write_bytes(offsets.tobytes())
    with tar.open("wb") as stream:
        stream.truncate(ROWS_PER_SHARD * SAMPLE_BYTES + 1024)
    lines = np.full((ROWS_PER_SHARD, 33), ord("\n"), np.uint8)
    lines[:, :32] = np.frombuffer(text, np.uint8).reshape(-1, 32)
    keys_hash = hashlib.sha256(lines.data).hexdigest()

    def entry(group: str, path: Path, sha256: str) -> FileEntry:
        return FileEntry(
            group=group,
            shard=shard,
            path=path.relative_to(root).as_posix(),
            rows=ROWS_PER_SHARD,
            bytes=path.stat().st_size,
            sha256=sha256,
            keys_sha256=keys_hash,
        )

    return (
        entry(SOURCE, source, file_sha256(source)),
        entry(IMAGES, tar, "0" * 64),
        entry(INDEX, index, file_sha256(index)),
    )


def _key_column(text: bytes) -> pa.Array:
    offsets = pa.py_buffer(np.arange(0, 32 * ROWS_PER_SHARD + 1, 32, dtype=np.int32).tobytes())
    return pa.Array.from_buffers(pa.string(), ROWS_PER_SHARD, [None, offsets, pa.py_buffer(text)])


def _source(text: bytes) -> pa.Table:
    columns = {field.name: pa.nulls(ROWS_PER_SHARD, field.type) for field in SOURCE_SCHEMA}
    columns["key"] = _key_column(text)
    for name, value in (("source", "synthetic"), ("task", "text2image")):
        columns[name] = pa.repeat(pa.scalar(value), ROWS_PER_SHARD)
    return pa.table(columns, schema=SOURCE_SCHEMA)


def _scores(root: Path, key: str, shard: int, source: FileEntry) -> FileEntry:
    path = root / group_path(SCORE, key, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    score = np.random.default_rng(shard).integers(0, 100, ROWS_PER_SHARD) / 10
    write_columns(pa.table({"key": _key_column(_keys(shard)), "score": score}), path)
    size, sha256 = path.stat().st_size, file_sha256(path)
    relative = path.relative_to(root).as_posix()
    return source.model_copy(update={"group": SCORE, "path": relative, "bytes": size, "sha256": sha256})


def _commit(
    dataset: Dataset,
    step: Step,
    shards: Sequence[tuple[FileEntry, ...]],
    schemas: dict[str, dict[str, str]],
    head: Commit | None,
) -> None:
    """Receipts and manifest, written as plainly as the files: no fsync, since nobody keeps them."""
    root = Path(str(dataset.root))
    _write(root / step_path(step.key), step.identity)
    for shard, files in enumerate(shards):
        receipt = Receipt(
            step=step.name,
            step_key=step.key,
            shard=shard,
            files=files,
            rows_in=ROWS_PER_SHARD,
            rows_out=ROWS_PER_SHARD,
            rejected={},
            failed={},
            schemas=schemas,
            context={"seconds": 1.0},
        )
        _write(root / receipt_path(step.key, shard), receipt.to_bytes())
    total = len(shards) * ROWS_PER_SHARD
    new = [entry for files in shards for entry in files]
    before = dataset.store.read(manifest_path(head.number)) if head else None
    commit = Commit(
        number=head.number + 1 if head else 0,
        parent=sha256_hex(before) if before is not None else None,
        step=step.name,
        version=step.version,
        step_key=step.key,
        configuration=dict(step.configuration),
        inputs=step.inputs,
        files=tuple(sorted((*(head.files if head else ()), *new), key=lambda one: (one.group, one.shard))),
        rows_in=total,
        rows_out=total,
        rejected={},
        failed={},
        schemas={**(head.schemas if head else {}), **schemas},
        terms={"synthetic": {"licence": "CC0-1.0", "terms": "open"}},
        context={"host": "benchmark"},
    )
    _write(root / manifest_path(commit.number), commit.to_bytes())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_archives(root: Path, images: int) -> Dataset:
    """A dataset of real archives, through the real writer: JPEG of about 100 KB, 1,000 a shard."""
    pictures = make_pictures(20, 480, 640, 5.0)
    run = StepRun(Dataset(root), Step("download", 1, {"source": "noise"}))
    for shard in range(-(-images // 1000)):
        out_shard = run.shard(shard)
        rows = []
        for number in range(shard * 1000, min(images, (shard + 1) * 1000)):
            row = {"key": sample_key("noise", str(number)), "source": "noise", "row_id": str(number)}
            out_shard.images().add(row["key"], pictures[number % 20], "jpg", make_view(row["key"], number, 480, 640))
            rows.append(row | {"task": "text2image", "caption": f"noise number {number}"})
        out_shard.columns(SOURCE, conform(pa.Table.from_pylist(rows, SOURCE_SCHEMA), SOURCE_SCHEMA, "source"))
        out_shard.rejects(REJECT_SCHEMA.empty_table())
        out_shard.finish(rows_in=len(rows))
    run.commit({"noise": {"licence": "CC0-1.0", "terms": "open"}})
    return run.dataset


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
