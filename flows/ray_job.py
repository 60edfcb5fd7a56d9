"""A training stage handed over to a Ray cluster as a job, followed to its end, and stopped when nobody wants it.

The job's id is `<key 12>-<attempt>`, so whoever trains the same stage finds it: a running attempt is attached to, one
that failed or was stopped is followed by the next. Its metadata say at which train step it ends, where it is to end
before the stage does. The cluster and this machine share the run's folder, where job.json, the lease and the metrics
lie.
"""

import logging
import shlex
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.flow_run import Cancelled
from flows.job_log import Tell, streamed
from flows.lease import Lease
from flows.ray_driver import LEASE_OVER, NOT_DONE, WRONG_JOB
from harmon.training.job import TrainJob, stage_folder, stage_store, training_key, write_job
from harmon.training.launch import Launch, OnLine
from harmon.training.new_lines import NewLines
from harmon.training.standing import completed, trained_steps
from pipelines.errors import ConfigurationError, HarmonError

POLL_SECONDS = 2.0
UNREACHABLE_SECONDS = 300.0  # for which a cluster may not answer before its follower gives up
UNSEEN_SECONDS = 60.0  # for which a shared folder may hide what another machine has written
STOP_SECONDS = 120.0
UNTIL = "until"  # among a job's metadata: the train step whose checkpoint ends it
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One submission of a stage, as its metadata tell of it."""

    name: str
    lease: Lease
    until: int | None
    """Train step whose checkpoint ends it; None: the stage's last."""


class RayJobs:
    """The attempts at one stage among the jobs of a cluster. Raises ConfigurationError where none answers.

    `address` is that of the cluster's job API, http://HEAD:8265, and `prefix` what the ids of the attempts begin with.
    """

    def __init__(self, address: str, prefix: str) -> None:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        self.address, self.prefix = address, prefix
        try:
            self._client = JobSubmissionClient(address)
        except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(
                f"No Ray cluster takes jobs at {address} ({reason}); name its job API in training.launch.submit, "
                "and its token in RAY_AUTH_TOKEN where it asks for one."
            ) from None

    def latest(self) -> tuple[int, Any] | None:
        """Number and JobDetails of the last attempt; None where the cluster knows of none."""
        known = {job.submission_id: job for job in self._ask(self._client.list_jobs) or () if job.submission_id}
        tails = [name.removeprefix(self.name("")) for name in known if name.startswith(self.name(""))]
        numbers = [int(tail) for tail in tails if tail.isdigit()]
        return (max(numbers), known[self.name(max(numbers))]) if numbers else None

    def name(self, attempt: int | str) -> str:
        """The id of an attempt."""
        return f"{self.prefix}-{attempt}"

    def submit(self, attempt: int, command: str, metadata: dict[str, str]) -> None:
        """Submit an attempt; one that another process has submitted meanwhile is as good."""
        name = self.name(attempt)
        try:
            self._client.submit_job(entrypoint=command, submission_id=name, metadata=metadata)
        except (OSError, RuntimeError) as error:
            if self.details(name) is None:
                raise HarmonError(f"The Ray cluster at {self.address} does not take the job {name}: {error}") from None

    def details(self, name: str) -> Any | None:
        """JobDetails of a job; None where the cluster does not know it, as after a new start."""
        return self._ask(partial(self._client.get_job_info, name))

    def stop(self, name: str) -> None:
        """Stop a job and wait until it has. Ray drops the wish to stop a job that has not begun, so it is repeated."""
        deadline = time.monotonic() + STOP_SECONDS
        while (job := self.details(name)) is not None and not job.status.is_terminal():
            if time.monotonic() > deadline:
                raise HarmonError(
                    f"The Ray job {name} does not stop; stop it with `ray job stop {name} --address {self.address}`."
                )
            self._ask(partial(self._client.stop_job, name))
            time.sleep(0.5)

    def _ask(self, question: Callable[[], Any]) -> Any | None:
        """What the cluster answers; None where it does not know the job. Waits for a cluster that does not answer."""
        deadline = time.monotonic() + UNREACHABLE_SECONDS
        while True:
            try:
                return question()
            except (OSError, RuntimeError) as error:
                if "does not exist" in str(error):
                    return None
                if time.monotonic() > deadline:
                    raise HarmonError(
                        f"The Ray cluster at {self.address} has not answered for {UNREACHABLE_SECONDS:g} s ({error}); "
                        "run it again once it does."
                    ) from None
                log.warning("the Ray cluster at %s does not answer: %s", self.address, error)
                time.sleep(POLL_SECONDS)

    def tail(self, name: str) -> AsyncIterator[str]:
        """A job's log from its first line to its last, in chunks, as it is written."""
        chunks: AsyncIterator[str] = self._client.tail_job_logs(name)
        return chunks

    def last_words(self, name: str) -> str:
        """The last line of a job's log, besides Ray's own first one, which it may write after the driver's."""
        try:
            lines = str(self._client.get_job_logs(name)).strip().splitlines()
        except (OSError, RuntimeError) as error:  # they lie on the node that ran the job, which may be gone
            return f"its log cannot be read: {error}"
        said = [line for line in lines if not line.startswith("Running entrypoint for job")]
        return said[-1] if said else "it said nothing"


def train_on_cluster(
    job: TrainJob,
    launch: Launch,
    on_line: OnLine | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    until: int | None = None,
    on_log: Tell | None = None,
) -> Path:
    """Train `job` on the cluster that `launch.submit` names, to its end or to a checkpoint of train step `until`, and
    return its folder; a stage that is done is not touched. `on_line` is called with each new line of metrics, `on_log`
    with each line of the job's log; `cancelled` is asked at each look. An attempt that ends before `until` is followed
    to its end, and then by the next.

    Raises:
        ConfigurationError: an attempt that runs goes further than `until`.
        Cancelled: `cancelled` said so, and the job has stopped.
        HarmonError: the training failed, `max_failures` drivers were lost, or the cluster is gone.
    """
    assert launch.submit is not None
    key = training_key(job)
    folder = stage_folder(job, key)
    if completed(job, key):
        return folder
    path, jobs = write_job(job, folder), RayJobs(launch.submit, key[:12])
    lines, lost = NewLines(folder, stage_store(job, key)), 0

    def tell(ended: bool) -> None:
        if on_line is not None:
            for line in lines.ask(ended):
                on_line(line)

    while True:
        attempt = _attempt(jobs, job, path, launch, until)
        name, lease = attempt.name, attempt.lease
        _check_ends_in_time(attempt, until, launch)
        try:
            heard: AbstractContextManager[None] = nullcontext()
            if on_log is not None:
                heard = streamed(partial(jobs.tail, name), on_log)
            with lease.renewed(), heard:
                status, code, why = _follow(jobs, name, tell, cancelled)
        except Cancelled:
            lease.forget()
            raise
        except BaseException:  # nobody follows it from here on, so it is not to run
            lease.end()
            raise
        lease.forget()
        if status == "SUCCEEDED":
            _wait_until_seen(job, key, name, attempt.until)
            if _stands(job, key, until):
                return folder
            continue  # it was to end before: the next attempt goes on
        lost += 1
        if status == "STOPPED":
            raise HarmonError(f"The Ray job {name} of {job.stage.stage} was stopped; run it again to go on.")
        if code in (WRONG_JOB, NOT_DONE) or lost > launch.max_failures:
            wrong = ConfigurationError if code == WRONG_JOB else HarmonError
            raise wrong(f"The Ray job {name} failed: {why}")
        log.warning("the driver of the Ray job %s was lost (%s); the next attempt goes on", name, why)


def _attempt(jobs: RayJobs, job: TrainJob, path: Path, launch: Launch, until: int | None) -> Attempt:
    """The attempt that runs, or a new one that ends at `until`."""
    latest = jobs.latest()
    if latest is not None and not latest[1].status.is_terminal():
        return _known(jobs, jobs.name(latest[0]), launch)
    number = latest[0] + 1 if latest else 1
    mine = Lease(path.parent / "leases" / f"{jobs.name(number)}-{uuid.uuid4().hex[:8]}", launch.lease_seconds)
    there = launch.model_copy(update={"submit": None})
    words = [str(path), "--launch", there.model_dump_json(), "--lease", str(mine.path)]
    options = shlex.join([*words, *(["--until", str(until)] if until is not None else [])])
    metadata = {"stage": job.stage.stage, "folder": str(path.parent), "lease": str(mine.path)}
    metadata |= {UNTIL: str(until)} if until is not None else {}
    with mine.renewed():
        # exec: a signal meets the driver, not a shell
        jobs.submit(number, f"exec python -m flows.ray_driver {options}", metadata)
    attempt = _known(jobs, jobs.name(number), launch)
    if attempt.lease.path != mine.path:  # another process has submitted it
        mine.forget()
    return attempt


def _known(jobs: RayJobs, name: str, launch: Launch) -> Attempt:
    details = jobs.details(name)
    if details is None:
        raise HarmonError(f"The Ray cluster at {jobs.address} lost the job {name} at once; look at its head node.")
    said = details.metadata
    until = int(said[UNTIL]) if UNTIL in said else None
    return Attempt(name, Lease(Path(said["lease"]), launch.lease_seconds), until)


def _check_ends_in_time(attempt: Attempt, until: int | None, launch: Launch) -> None:
    """Another's attempt that goes further than asked is neither cut short nor followed as if it were ours."""
    if until is None or (attempt.until is not None and attempt.until <= until):
        return
    goes = "to the end of its stage" if attempt.until is None else f"to train step {attempt.until}"
    raise ConfigurationError(
        f"The Ray job {attempt.name} trains this stage already, {goes} and not to train step {until}; follow "
        f"it without --stop-after, or stop it with `ray job stop {attempt.name} --address {launch.submit}`."
    )


def _follow(
    jobs: RayJobs, name: str, tell: Callable[[bool], None], cancelled: Callable[[], bool]
) -> tuple[str, int | None, str]:
    """Follow a job to its end: its last status, the driver's exit code, and the last words where it failed."""
    log.info("following the Ray job %s at %s", name, jobs.address)
    while True:
        details = jobs.details(name)
        ended = details is None or details.status.is_terminal()
        tell(ended)
        if details is None:
            return "FAILED", None, "the cluster has forgotten it"
        if ended:
            code, status = details.driver_exit_code, str(details.status.value)
            if status != "FAILED":
                return status, code, ""
            told = code in (LEASE_OVER, WRONG_JOB, NOT_DONE)
            return status, code, jobs.last_words(name) if told else str(details.message).partition("\n")[0]
        if cancelled():
            jobs.stop(name)
            raise Cancelled(f"The flow run was cancelled, and its Ray job {name} is stopped; run it again to go on.")
        time.sleep(POLL_SECONDS)


def _stands(job: TrainJob, key: str, until: int | None) -> bool:
    """Whether the stage is done, or has a checkpoint of train step `until` or a later one."""
    return completed(job, key) is not None or (until is not None and trained_steps(job, key) >= until)


def _wait_until_seen(job: TrainJob, key: str, name: str, until: int | None) -> None:
    deadline = time.monotonic() + UNSEEN_SECONDS
    while not _stands(job, key, until):
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"The Ray job {name} is done, but nothing of it is in {stage_folder(job, key)}: `runs` must be a "
                "folder that this machine and the whole cluster share under one name."
            )
        time.sleep(1.0)
