"""A training of WORLD processes of which each writes down the rows that its steps read, to be killed:

    python tests/harmon/recorded_training.py JOB RECORD WORLD

RECORD/RANK.jsonl has a line for each block: the sample numbers that the worker's batch is made of, and the keys of the
rows that it read for them. It is on disk before the block is trained on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.job import read_job
from harmon.training.loop import train
from harmon.training.mixture import Block
from harmon.training.rows import Row, StageRows
from harmon.training.stage import Task


def recorded(job: Path, record: Path, world: int) -> subprocess.Popen[bytes]:
    """Start it, in a process group of its own."""
    record.mkdir()
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, __file__, str(job), str(record), str(world)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)


def blocks_read(record: Path) -> list[dict]:
    """The blocks that all workers have read, in order: task, first sample, and (sample, key) of every row, worker by
    worker. A line that a kill cut short is none.
    """
    each = []
    for file in sorted(record.glob("*.jsonl"), key=lambda path: int(path.stem)):
        *lines, _ = file.read_text().split("\n")
        each.append([json.loads(line) for line in lines])
    read = []
    for parts in zip(*each, strict=False):  # a kill finds some workers further than others
        assert len({(part["task"], part["start"]) for part in parts}) == 1
        read.append(parts[0] | {"places": [place for part in parts for place in part["places"]]})
    return read


def work(rank: int, world: int, job: str, record: str) -> None:
    """Train as one of the workers, recording."""
    torch.set_num_threads(1)
    meeting = f"file://{record}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    row, batch = StageRows.row, StageData.batch
    reading: list[tuple[int, str]] = []

    def recording_row(rows: StageRows, task: Task, number: int) -> Row:
        found = row(rows, task, number)
        reading.append((number, found.place.key))
        return found

    def recording_batch(data: StageData, block: Block, of_rank: int, of: int) -> ImageBatch | ChatBatch | None:
        reading.clear()  # what was read to measure text lengths and the text's effect is no sample
        made = batch(data, block, of_rank, of)
        with (Path(record) / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"task": block.task, "start": block.start, "places": reading}) + "\n")
        return made

    StageRows.row, StageData.batch = recording_row, recording_batch  # type: ignore[method-assign]
    train(read_job(Path(job)))
    dist.destroy_process_group()


if __name__ == "__main__":
    workers = int(sys.argv[3])
    mp.start_processes(work, args=(workers, sys.argv[1], sys.argv[2]), nprocs=workers, start_method="spawn")
