"""Starting a stage: on Ray Train's workers, which come back after a failure, or in this process.

torchrun is the other way in: harmon.training.__main__.
"""

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from harmon.training.execution import Execution
from harmon.training.failure import ToldToStop, ending_callback, words_of
from harmon.training.growth import SAVE_SECONDS, asked, growing_callback, open_growth
from harmon.training.job import Notice, TrainJob, stage_folder, stage_store, training_key, write_job
from harmon.training.new_lines import NewLines
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
FOLLOW_SECONDS = 2.0
START_ATTEMPTS = 3
log = logging.getLogger(__name__)
OnLine = Callable[[dict[str, Any]], None]


class Launch(Settings):
    """How a stage runs; nothing here changes what it computes, beyond the last bits of float sums.

    Drop-out is the exception: it is seeded by (step, worker), so where the model has any, another number of workers
    gives another, equally valid, draw of it.
    """

    workers: Annotated[int, Field(ge=0)] | tuple[PositiveInt, PositiveInt] = 2
    """Ray Train workers; 0 trains in this process, without Ray. Two numbers: at least and at most so many, as the
    cluster has room; a step's samples and loss weights are the same for any number."""
    resize_seconds: float = Field(60.0, gt=0)
    """Seconds from one look for room to the next, while there are fewer workers than there could be."""
    threads: int = Field(1, gt=0)
    """CPU threads, and CPUs asked of Ray, for each worker."""
    max_failures: int = Field(3, ge=0)
    """How often lost workers are started again, from the latest complete checkpoint. Workers that were announced to
    be taken away do not count."""

    submit: str | None = None
    """Job API of a Ray cluster, such as http://head:8265, on which the stage then runs as a job; None: the workers
    belong to this process. `runs` must be a folder that this machine and the cluster share."""
    lease_seconds: float = Field(60.0, gt=0)
    """How long a job goes on when whoever submitted it is gone."""

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers {list(self.workers)} must name the smaller number first")
        if self.submit and not self.most_workers:
            raise ValueError("submit needs workers: with 0 the stage trains in this process")
        return self

    @property
    def most_workers(self) -> int:
        """Workers that there may be."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def launchable(execution: Execution, launch: Launch) -> Execution:
    """`execution` with what is left to choose narrowed to what `launch` can start: over a range of workers `auto` has
    no groups to form, since they divide few of the numbers between.
    """
    named = launch.workers
    if execution.parallel == "auto" and not isinstance(named, int) and named[0] != named[1]:
        return execution.model_copy(update={"shard_workers": None})
    return execution


def check_workers(execution: Execution, launch: Launch) -> None:
    """Raises ConfigurationError where `launch` may come to a number of workers that the shards do not fit."""
    groups, named = execution.shard_workers, launch.workers
    if execution.parallel != "hsdp" or launch.most_workers == 0:
        return
    if not isinstance(named, int) and named[0] != named[1]:
        raise ConfigurationError(
            f"workers {list(named)}: Ray may start any number between, and hsdp needs one that groups of {groups} "
            "divide; name one number of workers, or fsdp."
        )
    if groups is None or launch.most_workers % groups:
        raise ConfigurationError(
            f"hsdp over {launch.most_workers} workers needs shard_workers that divides them, not {groups}; the GPUs of "
            "a machine, say."
        )


def train_stage(
    job: TrainJob, launch: Launch | None = None, on_line: OnLine | None = None, until: int | None = None
) -> Path:
    """Train `job` to its end, or to a checkpoint of train step `until`, and return its folder; a stage of this key
    that is done is not touched.

    `on_line` is called with each new line of metrics, from another thread where Ray's workers write them.

    Raises:
        ConfigurationError: the workers do not fit the shards.
        HarmonError: the training failed, after `max_failures` new starts, or at once where none could mend it.
    """
    from harmon.training.standing import completed, trained_steps

    launch = launch or Launch()
    key = training_key(job)
    folder = stage_folder(job, key)
    if completed(job, key):
        return folder
    check_workers(job.execution, launch)
    write_job(job, folder)
    if launch.workers == 0:
        import torch

        from harmon.training.loop import train

        torch.set_num_threads(launch.threads)
        return train(job, key, on_line, until=until)
    with ray_session(launch), _followed(NewLines(folder, stage_store(job, key)), on_line):
        _fit(job, key, folder, launch, until)
    if not completed(job, key) and (until is None or trained_steps(job, key) < until):
        raise HarmonError(f"Ray ended the training in {folder} before its last step; run it again to go on.")
    return folder


def ray_session(launch: Launch) -> AbstractContextManager[None]:
    """The Ray that stages under `launch` run on, kept over several of them; nothing where none is wanted.

    Starting Ray takes some ten seconds, which is then paid once.
    """
    if not launch.workers or launch.submit:
        return nullcontext()
    return local_ray(launch.most_workers * launch.threads)


def set_ray_environment() -> None:
    """How Ray behaves here, unless the environment says otherwise already."""
    if "RAY_ADDRESS" not in os.environ:  # 2.60 demands tokens by default; a Ray of our own is loopback only
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a stage's end waits for Ray's next look


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A Ray with `cpus` CPUs inside this block, unless one is connected already or RAY_ADDRESS names a cluster.

    Its processes end with the block. If this process is killed, the kernel ends them with it (the thread that
    enters the block must live as long as the block); Ray's two idle agents follow within a minute.
    """
    set_ray_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))}
    cluster = os.environ.get("RAY_ADDRESS")
    local = {} if cluster else {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 128 << 20}
    settings = {"address": cluster or "local", "runtime_env": {"env_vars": environment}} | local
    _start_ray(settings | {"logging_level": "warning", "log_to_driver": False})
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(settings: dict[str, Any]) -> None:
    """ray.init, again where Ray gave itself up: it waits 30 s for its own node, too short on a busy machine."""
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            reason = str(error).strip().splitlines()[0]
            if attempt == START_ATTEMPTS:
                raise HarmonError(f"Ray did not start: {reason} Free some of the machine and run again.") from error
            log.warning("Ray did not start (%s); trying again", reason)


@contextmanager
def _followed(lines: NewLines, on_line: OnLine | None) -> Iterator[None]:
    """Hand the lines that workers write to `on_line` while the block runs."""
    if on_line is None:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        finishing = False
        while not finishing:
            finishing = ended.wait(FOLLOW_SECONDS)
            for line in lines.ask(finishing):
                on_line(line)

    thread = threading.Thread(target=follow, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _fit(job: TrainJob, key: str, folder: Path, launch: Launch, until: int | None) -> None:
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # A fixed number of workers may take long on a busy machine. With a range, Ray should soon give up waiting for a
    # node that has gone, and take fewer.
    patience = "300" if isinstance(launch.workers, int) else "60"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", patience)
    notes = folder / "ray"  # Ray Train's own state, of no use to a later start: ours resumes from checkpoints
    shutil.rmtree(notes, ignore_errors=True)
    resources = {"CPU": launch.threads} | ({"GPU": 1} if job.device == "cuda" else {})
    config = {"job": job.model_dump_json(), "key": key, "threads": launch.threads, "until": until}
    # while workers train their number changes within a range alone
    growth = None if isinstance(launch.workers, int) else open_growth()
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config | {"owner": secrets.token_hex(8), "growth": growth},
        torch_config=TorchConfig(backend="nccl" if job.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=launch.workers,
            use_gpu=job.device == "cuda",
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=launch.resize_seconds,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(notes.resolve()),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            callbacks=[ending_callback(), *([growing_callback(growth)] if growth else [])],
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        if isinstance(error.controller_failure, HarmonError):  # one that no new start can mend, as its worker said it
            raise error.controller_failure from None
        raise _failed(job, folder, error) from error
    except Exception as error:  # Ray wraps whatever a worker raised, its own failures too
        raise _failed(job, folder, error) from error
    shutil.rmtree(notes, ignore_errors=True)


def _failed(job: TrainJob, folder: Path, error: Exception) -> HarmonError:
    return HarmonError(f"{job.stage.stage} failed in {folder}: {words_of(error)}")


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs, its torch.distributed group being up.

    Lines of metrics are not reported to Ray, which has no use for them: a report waits for the controller's next look.
    """
    import ray.train
    import torch

    from harmon.training.loop import train

    torch.set_num_threads(config["threads"])
    job = TrainJob.model_validate_json(config["job"])
    growth = config["growth"] if ray.train.get_context().get_world_rank() == 0 else None
    if growth:
        asked(growth, "begin")

    def told() -> Notice:
        notice = _notice()  # which all workers ask together
        return "stop" if growth and asked(growth, "wanted") else notice

    try:
        train(job, config["key"], told=told, until=config["until"], owner=config["owner"])
    except ToldToStop:
        if growth:
            asked(growth, "end")
        time.sleep(SAVE_SECONDS)  # Ray ends this worker, and starts others
        raise
    finally:
        if growth:
            asked(growth, "end")


def _notice() -> Notice:
    """Whether a node of these workers is about to be taken away. All workers ask together and hear the same; when it
    goes, Ray starts them again.
    """
    import ray.train

    return "go on" if ray.train.get_preemption_info() is None else "save"
