"""A stage under torchrun, an equal way in beside Ray Train:

    torchrun --nproc-per-node 8 -m harmon.training runs/RUN/train/STAGE/job.json

It goes on from the stage's latest checkpoint, whoever wrote it and on how many workers. SIGTERM, as a machine gets it
that is to be taken away, saves a checkpoint within a second or two steps on all workers, and ends them.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from harmon.training.job import Notice, TrainJob, read_job
from harmon.training.loop import train
from pipelines.errors import ConfigurationError, HarmonError


def main(arguments: list[str] | None = None) -> int:
    """Run as one of torchrun's workers. Exit codes: 0 done, 2 wrong job, 3 not done, or told to stop."""
    parser = argparse.ArgumentParser(prog="torchrun -m harmon.training", description="Train one stage.")
    parser.add_argument("job", type=Path, help="job.json of the stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker")
    chosen = parser.parse_args(arguments)
    try:
        if "RANK" not in os.environ:
            raise ConfigurationError("torchrun did not start this process; write `torchrun -m harmon.training JOB`.")
        _train(read_job(chosen.job), chosen.threads)
    except HarmonError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 3
    return 0


def _train(job: TrainJob, threads: int) -> None:
    torch.set_num_threads(threads)
    if job.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))

    def told() -> Notice:
        return "stop" if heard else "go on"

    dist.init_process_group("cpu:gloo,cuda:nccl" if job.device == "cuda" else "gloo")
    try:
        train(job, told=told)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
