"""A process that has a cluster train a job, to be killed: python tests/flows/follower.py JOB LAUNCH"""

import os
import subprocess
import sys
from pathlib import Path

from flows.ray_job import train_on_cluster
from harmon.training.job import read_job
from harmon.training.launch import Launch


def follower(job: Path, launch: Launch) -> subprocess.Popen[bytes]:
    """Start it on job.json."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, __file__, str(job), launch.model_dump_json()], env=os.environ | {"PYTHONPATH": path}
    )


if __name__ == "__main__":
    train_on_cluster(read_job(Path(sys.argv[1])), Launch.model_validate_json(sys.argv[2]))
