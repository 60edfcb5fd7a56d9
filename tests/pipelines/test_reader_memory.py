"""The memory of every reader does not grow with its input; with HARMON_SOAK, 2 GB are read under 1 GB at the peak."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.reader_memory import LAYOUTS, MB, write

SOAK = bool(os.environ.get("HARMON_SOAK"))
ROOT = Path(__file__).resolve().parents[2]


def peak(layout: str, folder: Path, megabytes: int) -> tuple[int, int]:
    """Rows, and bytes at the peak, of a process of its own."""
    folder.mkdir()
    write(layout, folder, megabytes)
    command = [sys.executable, "-m", "tests.pipelines.reader_memory", "read", layout, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["rows"], told["peak"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_stays_flat_while_the_input_grows(layout: str, tmp_path: Path) -> None:
    first = 80 if layout.endswith("parquet") else 27  # beyond it allocators have taken what they keep
    rows, small = peak(layout, tmp_path / "small", first)
    more, large = peak(layout, tmp_path / "large", 3 * first)
    assert more > 2.5 * rows and large - small < 16 * MB, f"{small / MB:.0f} MB, then {large / MB:.0f} MB"


@pytest.mark.skipif(not SOAK, reason="reads 2 GB for each layout; HARMON_SOAK=1 does it")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_of_two_gigabytes_stays_under_one(layout: str, tmp_path: Path) -> None:
    rows, most = peak(layout, tmp_path / "two", 2000)
    print(f"{layout}: {rows:,} rows of 2 GB, peak {most / MB:.0f} MB")
    assert most < 1000 * MB
    for path in (tmp_path / "two").rglob("*"):
        if path.is_file():
            path.unlink()
