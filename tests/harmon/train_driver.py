"""A process that trains a job on Ray, to be killed: python tests/harmon/train_driver.py JOB WORKERS"""

import sys
from pathlib import Path

from harmon.training.job import read_job
from harmon.training.launch import Launch, train_stage

if __name__ == "__main__":
    train_stage(read_job(Path(sys.argv[1])), Launch(workers=int(sys.argv[2]), max_failures=5))
