"""A process that trains a job on Ray, to be killed: python tests/harmon/train_driver.py JOB LAUNCH"""

import os
import subprocess
import sys
from pathlib import Path

from harmon.training.job import read_job
from harmon.training.launch import Launch, train_stage


def driver(job: Path, launch: Launch) -> subprocess.Popen[bytes]:
    """Start it on job.json; it connects to the Ray that RAY_ADDRESS names, or starts its own."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, __file__, str(job), launch.model_dump_json()], env=os.environ | {"PYTHONPATH": path}
    )


if __name__ == "__main__":
    train_stage(read_job(Path(sys.argv[1])), Launch.model_validate_json(sys.argv[2]))
