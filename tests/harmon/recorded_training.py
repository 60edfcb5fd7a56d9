"""A process that trains a job and writes down each sample that a step takes in, to be killed:

    python tests/harmon/recorded_training.py JOB RECORD WORLD

Each block's samples are looked up as WORLD workers would, each with rows of its own, and the block goes to the training
whole. A line of RECORD is one block; it is on disk before the step begins.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.job import read_job
from harmon.training.loop import train
from harmon.training.mixture import Block
from harmon.training.rows import StageRows


def recorded(job: Path, record: Path, world: int) -> subprocess.Popen[bytes]:
    """Start it."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, __file__, str(job), str(record), str(world)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})


def main(job_file: Path, record: Path, world: int) -> None:
    """Train, recording."""
    job = read_job(job_file)
    workers = [StageRows(job.stage, job.mixture, str(job.latents)) for _ in range(world)]
    batch = StageData.batch

    def recording(data: StageData, block: Block, rank: int, of: int) -> ImageBatch | ChatBatch | None:
        places: list[Any] = []
        for number, worker in enumerate(workers):
            places += [(one, worker.row(block.task, one).place.key) for one in block.share(number, world)]
        with record.open("a") as file:
            file.write(json.dumps({"task": block.task, "start": block.start, "places": places}) + "\n")
        return batch(data, block, rank, of)

    StageData.batch = recording  # type: ignore[method-assign]
    train(job)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
