"""Stages handed over to a real Ray cluster: attached to, followed, stopped, and left running by nobody's death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from flows.flow_run import Cancelled
from flows.ray_driver import main
from flows.ray_job import RayJobs, train_on_cluster
from flows.recipe import load_recipe
from flows.training_work import job_of
from harmon.latents import write_latents
from harmon.training.job import TrainJob, done, metrics_lines, stage_folder, training_key, write_job
from harmon.training.launch import Launch
from harmon.training.loop import train
from harmon.training.standing import trained_steps
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.loopback import free_port
from tests.flows.follower import follower
from tests.flows.ray_head import RayHead, ray_head
from tests.flows.test_train_command import CUT, recipe_in
from tests.harmon.miniature import make_autoencoder, make_corpus, make_job, small_stage, tiny_model
from tests.harmon.ray_workers import processes, workers_of

torch.set_num_threads(1)
STEPS, PATIENCE = 40, 300.0


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with ray_head(cpus=2) as started:
        yield started
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    folder = tmp_path_factory.mktemp("run")
    return make_job(folder, small_stage(steps=STEPS), dtype="float64", checkpoint_every=4)


def there(job: TrainJob, folder: Path, seed: int) -> tuple[TrainJob, Path]:
    """The job with results in `folder`, as another training than the module's others, and its stage's folder."""
    stage = job.stage.model_copy(update={"seed": seed})
    moved = job.model_copy(update={"runs": str(folder), "stage": stage})
    return moved, stage_folder(moved, training_key(moved))


def wait(come: Callable[[], object], running: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert running is None or running.poll() is None, "the follower ended before what was waited for"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(folder: Path) -> int:
    return max((line["step"] for line in metrics_lines(folder)), default=0)


def owner(folder: Path) -> int | None:
    """The process that renewed the lease last."""
    return next((int(path.read_text().split()[1]) for path in (folder / "leases").glob("*[0-9a-f]")), None)


def driver_of(path: Path) -> int:
    (found,) = (pid for pid in processes() if _command(pid)[1:4] == ["-m", "flows.ray_driver", str(path)])
    return found


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:  # the process has ended meanwhile
        return []


@pytest.mark.slow
def test_of_two_followers_one_may_die_and_a_killed_driver_is_followed_by_the_next_attempt(
    head: RayHead, job: TrainJob, tmp_path: Path
) -> None:
    there_job, folder = there(job, tmp_path, seed=1)
    launch = Launch(workers=2, submit=head.address, lease_seconds=12.0)
    path, name = write_job(there_job, folder), training_key(there_job)[:12]
    jobs = RayJobs(head.address, name)
    first, second = (follower(path, launch) for _ in range(2))  # one submits, the other finds the job and attaches
    owners: set[int | None] = set()

    def both_follow() -> bool:
        owners.add(owner(folder))
        return owners >= {first.pid, second.pid} and steps(folder) >= 2

    wait(both_follow, second)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    number, attempt = jobs.latest()
    assert attempt.submission_id == f"{name}-1" and attempt.status == "RUNNING"
    os.kill(driver_of(path), signal.SIGKILL)
    assert second.wait(PATIENCE) == 0
    number, attempt = jobs.latest()
    assert number == 2 and attempt.status == "SUCCEEDED" and jobs.details(f"{name}-1").status == "FAILED"
    assert done(folder, training_key(there_job)) and not list((folder / "leases").iterdir())
    assert train_on_cluster(there_job, launch) == folder and jobs.latest()[0] == 2  # nothing to do
    alone = train(there_job.model_copy(update={"runs": str(tmp_path / "alone")}))
    for ours, theirs in zip(metrics_lines(folder), metrics_lines(alone), strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)


@pytest.fixture
def recipe(head: RayHead, tmp_path: Path) -> Path:
    """A recipe whose first stage trains on the cluster, its training set made."""
    autoencoder, values = make_autoencoder(tmp_path / "patch_latent.safetensors"), recipe_in(tmp_path)
    write_latents(make_corpus(tmp_path / "data" / "corpus"), 64, autoencoder)
    (tmp_path / "model.yaml").write_text(tiny_model().model_dump_json())
    steps = 20 * STEPS  # far more than are done before a lease of 10 s lapses
    values["training"]["stages"][0]["departures"] = CUT | {"steps": steps}
    values["training"] |= {"watch": {}, "launch": {"workers": 2, "submit": head.address, "lease_seconds": 10.0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_nothing_runs_on_when_its_follower_is_gone_or_its_flow_run_cancelled(head: RayHead, recipe: Path) -> None:
    loaded = load_recipe(recipe)
    job = job_of(loaded, 0)
    folder, key = stage_folder(job, training_key(job)), training_key(job)
    jobs = RayJobs(head.address, key[:12])
    command = [sys.executable, "-m", "flows.cli", "train", str(recipe), "--stage", "stage1"]
    alone = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    wait(lambda: steps(folder) >= 1, alone)
    os.kill(alone.pid, signal.SIGKILL)
    alone.wait()
    wait(lambda: jobs.latest()[1].status.is_terminal() and not workers_of(head.pid))
    assert jobs.latest()[1].driver_exit_code == 1 and "lease was not renewed for 10 s" in jobs.last_words(jobs.name(1))
    heard: list[int] = []
    with pytest.raises(Cancelled, match=f"Ray job {jobs.name(2)} is stopped"):
        train_on_cluster(job, loaded.training.launch, lambda line: heard.append(line["step"]), lambda: bool(heard))
    assert jobs.latest()[0] == 2 and jobs.latest()[1].status == "STOPPED"
    wait(lambda: not workers_of(head.pid))
    assert not done(folder, key)


def test_a_training_that_fails_says_why_and_is_not_tried_again(head: RayHead, job: TrainJob, tmp_path: Path) -> None:
    there_job, _ = there(job, tmp_path, seed=3)
    jobs = RayJobs(head.address, training_key(there_job)[:12])
    lease = tmp_path / "lease"  # waited for: the follower has attached
    said = f"echo Begun.; until [ -e {lease} ]; do sleep 0.1; done; echo The loss was not finite.; exit 3"
    jobs.submit(1, said, {"lease": str(lease)})
    jobs.submit(1, said, {})  # as when two submit it at once: one of them has
    told: list[str] = []
    with pytest.raises(HarmonError, match=rf"Ray job {jobs.name(1)} failed: The loss was not finite\."):
        train_on_cluster(there_job, Launch(submit=head.address), on_log=told.append)
    assert jobs.latest()[0] == 1
    itself = ["Begun.", "The loss was not finite."]  # among Ray's own lines
    assert [line for line in told if line in itself] == itself


@pytest.mark.slow
def test_an_attempt_that_ends_earlier_is_followed_by_one_that_goes_on(
    head: RayHead, job: TrainJob, tmp_path: Path
) -> None:
    there_job, folder = there(job, tmp_path, seed=5)
    key = training_key(there_job)
    jobs, launch = RayJobs(head.address, key[:12]), Launch(workers=1, submit=head.address)
    train(there_job, until=2)  # what another's attempt, up to step 2, has left
    lease = tmp_path / "lease"  # waited for: the follower has attached
    jobs.submit(1, f"until [ -e {lease} ]; do sleep 0.1; done", {"lease": str(lease), "until": "2"})
    assert train_on_cluster(there_job, launch, until=4) == folder
    number, attempt = jobs.latest()
    assert number == 2 and attempt.metadata["until"] == "4" and trained_steps(there_job, key) == 4


def test_an_attempt_that_goes_further_is_not_attached_to(head: RayHead, job: TrainJob, tmp_path: Path) -> None:
    there_job, _ = there(job, tmp_path, seed=6)
    jobs, launch = RayJobs(head.address, training_key(there_job)[:12]), Launch(workers=1, submit=head.address)
    lease = tmp_path / "lease"
    for number, (known, told) in enumerate([({}, "the end of its stage"), ({"until": "9"}, "train step 9")], start=1):
        jobs.submit(number, "exec sleep 600", {"lease": str(lease), **known})
        with pytest.raises(ConfigurationError, match=rf"{jobs.name(number)} trains this stage already, to {told}"):
            train_on_cluster(there_job, launch, until=4)
        assert jobs.latest()[0] == number and not jobs.latest()[1].status.is_terminal()
        jobs.stop(jobs.name(number))


def test_a_driver_that_finds_other_data_than_the_submitter_refuses(job: TrainJob, tmp_path: Path, capfd) -> None:
    there_job, folder = there(job, tmp_path, seed=3)
    path = write_job(there_job.model_copy(update={"dtype": "float32"}), folder)
    launch = Launch(workers=1, lease_seconds=1e6)
    assert main([str(path), "--launch", launch.model_dump_json(), "--lease", str(tmp_path / "lease")]) == 2
    assert "run the same version of harmon on both" in capfd.readouterr().err


def test_an_address_that_no_cluster_answers_at_is_named(job: TrainJob, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    moved, _ = there(job, tmp_path, seed=4)
    with pytest.raises(ConfigurationError, match=r"No Ray cluster takes jobs at http://127\.0\.0\.1"):
        train_on_cluster(moved, Launch(submit=f"http://127.0.0.1:{free_port()}"))


def test_a_job_needs_workers() -> None:
    with pytest.raises(ValueError, match="submit needs workers"):
        Launch(workers=0, submit="http://head:8265")
