"""A stage's metrics.jsonl: its lines, written, carried along with checkpoints, and gone back to."""

import json
import math
from pathlib import Path
from typing import Any

from harmon.training.job import METRICS, metrics_lines, parsed_lines
from pipelines.disk import write_whole


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Add a line, whose numbers are `finite`."""
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def go_back(folder: Path, checkpoint: Path | None, step: int) -> None:
    """Have metrics.jsonl hold the lines up to the checkpoint of `step` that training goes on from, those that another
    machine wrote too; the steps beyond it come again.
    """
    carried = checkpoint / METRICS if checkpoint else None
    known = parsed_lines(carried.read_text()) if carried and carried.exists() else metrics_lines(folder)
    kept = "".join(json.dumps(line) + "\n" for line in known if line["step"] <= step)
    write_whole(folder / METRICS, kept.encode())
