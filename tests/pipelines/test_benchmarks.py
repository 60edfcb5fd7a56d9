"""The benchmarks of this package measure real things: their datasets are sound, their numbers are printed."""

import sys
from pathlib import Path

import pytest

from benchmarks import audit as audit_benchmark
from benchmarks import dataset_io
from pipelines.audit import audit


def test_the_synthetic_dataset_is_sound_at_its_claimed_size(tmp_path: Path) -> None:
    dataset = audit_benchmark.make_dataset(tmp_path / "synthetic", 2)
    report = audit(dataset)
    assert report.findings == ()
    assert report.rows == 2 * audit_benchmark.ROWS_PER_SHARD
    entry = dataset.entry("images", 1)
    assert entry is not None
    assert dataset.store.size(entry.path) == entry.bytes > 10**9
    dataset.store.remove(entry.path)
    assert audit(dataset).counts == {"file_missing": 1}


def test_reading_and_writing_are_compared_with_their_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dataset_io", "--quick"])
    dataset_io.main()
    lines = capsys.readouterr().out.splitlines()
    compared = ["write, index and sha256 included", "raw bytes in random order", "read in random order and decoded"]
    assert [line.partition(":")[0] for line in lines if "images/CPU-s" in line] == compared * len(dataset_io.SIZES)
