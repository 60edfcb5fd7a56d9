"""The first rows of each task, kept from start to start: what a resume would otherwise open shards for.

The probe of the prompt's effect and the mean text lengths are of a stage's first samples, whose shards a run that goes
on at position 100 million has long done with.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from harmon.training.row import Place, Row
from harmon.training.stage import Task

ROWS = 64  # of each task: what the text lengths are measured over; the probe takes fewer
FirstRows = Mapping[Task, list[Row]]


def read_first(file: Path) -> FirstRows | None:
    """What `write_first` wrote; None where it is not there, or cannot be read, and is found again."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            told: dict[Task, list[dict[str, Any]]] = json.loads(arrays["rows"].tobytes())
            latents = {task: arrays.get(task) for task in told}
        return {
            task: [
                Row(**row | {"place": Place(**row["place"]), "latents": None if stored is None else stored[at]})
                for stored in [latents[task]]
                for at, row in enumerate(rows)
            ]
            for task, rows in told.items()
        }
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None


def write_first(file: Path, tasks: list[Task], row: Callable[[Task, int], Row]) -> None:
    """Find the first rows of `tasks` by `row` and keep them in `file`."""
    found = {task: [row(task, number) for number in range(ROWS)] for task in tasks}
    told = {task: [asdict(replace(one, latents=None)) for one in rows] for task, rows in found.items()}
    latents: dict[str, Any] = {}
    for task, rows in found.items():
        if stored := [one.latents for one in rows if one.latents is not None]:
            latents[task] = np.stack(stored)
    file.parent.mkdir(parents=True, exist_ok=True)
    attempt = file.with_name(f".{file.name}.part")
    with attempt.open("wb") as stream:
        np.savez(stream, rows=np.frombuffer(json.dumps(told).encode(), np.uint8), **latents)
    attempt.replace(file)
