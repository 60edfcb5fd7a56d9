"""A stage as a job of a Ray cluster: what `flows.ray_job` has the cluster run.

    python -m flows.ray_driver runs/RUN/train/STAGE/job.json --launch JSON --lease FILE

It holds the lease: when nobody renews it any more, this process ends, and Ray's workers with it. Exit codes: 0 done, 1
the lease is over, 2 wrong job, 3 not done.
"""

import argparse
import os
import sys
from pathlib import Path

from flows.lease import Lease
from harmon.training.job import TrainJob, read_job, stage_folder, training_key
from harmon.training.launch import Launch, train_stage
from pipelines.errors import ConfigurationError, HarmonError

DONE, LEASE_OVER, WRONG_JOB, NOT_DONE = range(4)


def main(arguments: list[str] | None = None) -> int:
    """Train the stage of a job.json on the Ray that this process belongs to."""
    parser = argparse.ArgumentParser(prog="python -m flows.ray_driver", description="Train one stage as a Ray job.")
    parser.add_argument("job", type=Path, help="job.json of the stage")
    parser.add_argument("--launch", required=True, help="settings of training.launch, as JSON")
    parser.add_argument("--lease", type=Path, required=True, help="file that the follower renews")
    parser.add_argument("--until", type=int, help="train step whose checkpoint ends it")
    chosen = parser.parse_args(arguments)
    launch = Launch.model_validate_json(chosen.launch)
    Lease(chosen.lease, launch.lease_seconds).held(_leave)
    try:
        job = read_job(chosen.job)
        _check_same(job, chosen.job)
        train_stage(job, launch, until=chosen.until)
    except HarmonError as error:
        print(error, file=sys.stderr)
        return WRONG_JOB if isinstance(error, ConfigurationError) else NOT_DONE
    return DONE


def _check_same(job: TrainJob, path: Path) -> None:
    """The stage's folder carries its key, which is made of the content of what it reads."""
    if stage_folder(job, training_key(job)).name != path.parent.name:
        raise ConfigurationError(
            f"{path} was written where its datasets, first weights or tokenizer hold something else than on this "
            "cluster; share them, and run the same version of harmon on both."
        )


def _leave(why: str) -> None:
    """End at once, from whatever thread: Ray ends the workers of a driver that is gone."""
    print(f"The lease {why}: nobody follows this training. Submitted again, it goes on.", file=sys.stderr, flush=True)
    os._exit(LEASE_OVER)


if __name__ == "__main__":
    sys.exit(main())
