"""A deployed training on a real Prefect server, worker and Ray: cancelled, and its follower, its worker or both killed.

Minutes, so only with HARMON_SOAK; tests/flows/test_ray_job.py has the hand-over to Ray without Prefect in every run.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.ray_job import RayJobs
from flows.recipe import load_recipe
from flows.training_work import job_of
from harmon.training.job import stage_folder, training_key
from tests.flows.deploying import deploy_each
from tests.flows.postgres import PROGRAMS, postgres
from tests.flows.prefect_api import Api
from tests.flows.prefect_process import prefect_server_process, worker_process
from tests.flows.ray_head import RayHead
from tests.flows.test_ray_job import head, owner, recipe, steps, wait
from tests.harmon.ray_workers import workers_of

__all__ = ["head", "recipe"]
pytestmark = [
    pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="minutes; set HARMON_SOAK=1"),
    pytest.mark.timeout(1200),
]
STOP_SECONDS = 30  # within which a cancelled flow run has stopped its Ray job
LONG = ["training.stages.0.departures.steps=50000", "training.launch.lease_seconds=600"]


@dataclass(frozen=True)
class Training:
    """A training that a flow run follows."""

    api: Api
    run: str
    folder: Path
    jobs: RayJobs
    worker: int
    log: Path

    @property
    def follower(self) -> int:
        found = owner(self.folder)
        assert found is not None
        return found

    def wait_for_steps(self, more: int = 1) -> None:
        before = steps(self.folder)
        self.wait(lambda: steps(self.folder) >= before + more)

    def wait(self, come: Callable[[], object]) -> None:
        wait(lambda: come() or self._ended())

    def _ended(self) -> bool:
        state = self.api.state(self.run)
        assert state.get("type") not in ("FAILED", "CANCELLED"), (state, self.log.read_text()[-4000:])
        return False


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as opened:
        settings = {}
        if request.param == "postgresql":
            if not PROGRAMS:
                pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
            settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = opened.enter_context(postgres())
        yield opened.enter_context(prefect_server_process(folder, **settings))


@pytest.fixture
def begun(
    server: str, head: RayHead, recipe: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Training]:
    """A training that has taken its first step."""
    settings = getattr(request, "param", [])
    deploy_each(server, tmp_path, ["--heartbeat-seconds", "30", "--gpu-runs", "4"])
    job = job_of(load_recipe(recipe, settings), 0)
    folder, jobs = stage_folder(job, training_key(job)), RayJobs(head.address, training_key(job)[:12])
    api = Api(server)
    with worker_process(tmp_path, server) as worker:
        run = api.start("harmon-train/any", {"recipe": str(recipe), "stage": "stage1", "settings": settings})
        training = Training(api, run, folder, jobs, worker, tmp_path / "worker.log")
        training.wait(lambda: steps(folder) >= 1)
        yield training


def ended(jobs: RayJobs) -> bool:
    return bool(jobs.latest()[1].status.is_terminal())


def test_cancelling_the_flow_run_stops_its_ray_job_within_30_s(begun: Training, head: RayHead) -> None:
    since = time.monotonic()
    begun.api.set_state(begun.run, "CANCELLING")
    wait(lambda: ended(begun.jobs))
    took = time.monotonic() - since
    assert took < STOP_SECONDS
    assert begun.api.wait(begun.run, log=begun.log.read_text)["type"] == "CANCELLED"
    wait(lambda: not workers_of(head.pid))
    print(f"the Ray job had stopped {took:.1f} s after the flow run was cancelled")


def test_a_killed_follower_is_told_of_and_its_job_stops_when_the_lease_lapses_and_the_next_run_goes_on(
    begun: Training, head: RayHead
) -> None:
    first = begun.jobs.latest()[0]
    os.kill(begun.follower, signal.SIGKILL)
    assert begun.api.wait(begun.run, log=begun.log.read_text)["type"] == "CRASHED"
    wait(lambda: ended(begun.jobs) and not workers_of(head.pid))
    assert "lease was not renewed for 10 s" in begun.jobs.last_words(begun.jobs.name(first))
    begun.api.set_state(begun.run, "SCHEDULED", "AwaitingRetry")  # the UI's Retry
    begun.wait(lambda: begun.jobs.latest()[0] == first + 1)
    begun.wait_for_steps()
    begun.api.set_state(begun.run, "CANCELLING")
    assert begun.api.wait(begun.run, log=begun.log.read_text)["type"] == "CANCELLED"


@pytest.mark.parametrize("begun", [LONG], indirect=True)
def test_a_lost_worker_makes_a_zombie_that_is_told_of_and_run_again_attaches_to_the_job_that_runs(
    begun: Training, server: str, tmp_path: Path
) -> None:
    follower, first = begun.follower, begun.jobs.latest()[0]
    os.kill(begun.worker, signal.SIGKILL)
    begun.wait_for_steps(5)
    assert begun.follower == follower  # it goes on without its worker
    os.kill(follower, signal.SIGKILL)
    state = begun.api.wait(begun.run, "CRASHED")
    assert "no sign of life for 90 s" in state["message"]
    assert not ended(begun.jobs)
    with worker_process(tmp_path, server):
        begun.api.set_state(begun.run, "SCHEDULED", "AwaitingRetry")
        begun.wait(lambda: begun.follower != follower)
        begun.wait_for_steps(2)
        assert begun.jobs.latest()[0] == first and not ended(begun.jobs)
        begun.api.set_state(begun.run, "CANCELLING")
        assert begun.api.wait(begun.run, log=begun.log.read_text)["type"] == "CANCELLED"
    wait(lambda: ended(begun.jobs))
