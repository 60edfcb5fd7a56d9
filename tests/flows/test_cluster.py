"""`harmon cluster` on a real Ray of several nodes with Ray's real autoscaler: work is never disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
import yaml
from click.testing import CliRunner, Result
from ray._private import ray_constants

from flows.caption_groups import rewrite_of
from flows.cli import main
from flows.cluster.head import MARK
from flows.cluster.live import Live
from flows.cluster.local import WORKER, Local
from flows.cluster.scaling import Outcome
from flows.cluster.state import Node
from flows.ray_job import RayJobs
from flows.recipe import load_recipe
from harmon.training.job import metrics_lines, stage_folder, training_key, write_job
from harmon.training.launch import Launch
from pipelines.dataset import Dataset
from recaption.captions import write_captions
from tests.flows.follower import follower
from tests.flows.test_train_command import recipe_in
from tests.harmon.miniature import make_job, small_stage
from tests.recaption.captioned import FirstSentence, write_scenes

NAME, MOST, PATIENCE = f"test-{os.getpid()}", 3, 240.0
soak = pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="HARMON_SOAK=1 runs it")


def cluster(*words: str) -> Result:
    return CliRunner().invoke(main, ["cluster", *words, "--name", NAME])


def wait(come: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert time.monotonic() < deadline, cluster("status").output
        time.sleep(0.3)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as `up` has one export; Ray reads it when it is imported,
    over_the_network, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # as here
    done = cluster("up", "--most", str(MOST), "--idle-minutes", "0.05")
    try:
        assert done.exit_code == 0, done.output
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{Local(NAME).standing.gcs}"
        connected = Live()
        ray.init(connected.address, logging_level="warning", log_to_driver=False)
        yield connected
    finally:
        ray.shutdown()
        cluster("down", "--take-training")
        assert not Local(NAME).folder.exists()
        ray_constants.ENABLE_RAY_CLUSTER = over_the_network
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """A test that uses the cluster finds it without nodes: unused ones leave by themselves."""
    if "live" in request.fixturenames:
        live: Live = request.getfixturevalue("live")
        live.ask(WORKER, 0)
        wait(lambda: not workers(live))


def workers(live: Live) -> list[Node]:
    return [node for node in live.state().nodes if not node.head]


def test_nodes_come_and_go_while_work_runs_on_undisturbed(live: Live, tmp_path: Path) -> None:
    def work(number: int) -> str:
        with (tmp_path / f"begun-{number}").open("a") as file:
            file.write("again\n")
        while not (tmp_path / "end").exists():
            time.sleep(0.05)
        node: str = ray.get_runtime_context().get_node_id()
        return node

    busy = [ray.remote(num_cpus=1, max_retries=0)(work).remote(number) for number in range(2)]
    wait(lambda: len(list(tmp_path.glob("begun-*"))) == 2)  # the autoscaler saw the work that waited
    grown = json.loads(cluster("scale", "--nodes", "3", "--json").stdout)
    assert (grown["before"], grown["now"], grown["reached"]) == (2, 3, True)
    said: list[str] = []
    shrink = ["scale", "--type", WORKER, "--count", "1", "--wait", str(PATIENCE)]
    shrinking = threading.Thread(target=lambda: said.append(Local(NAME).on_head(shrink)))
    shrinking.start()
    wait(lambda: [node.state for node in workers(live)].count("DRAINING") == 1 and len(workers(live)) == 2)
    assert shrinking.is_alive() and ray.wait(busy, num_returns=2, timeout=0)[0] == []
    (tmp_path / "end").touch()
    nodes = ray.get(busy)
    shrinking.join(PATIENCE)
    outcome = Outcome.model_validate_json(said[0].partition(MARK)[2])
    assert len(set(nodes)) == 2 and all(p.read_text() == "again\n" for p in tmp_path.glob("begun-*"))
    assert outcome.reached and len(outcome.left) == 2 and (outcome.before, outcome.now) == (3, 1)
    (kept,) = workers(live)
    assert kept.id in nodes and kept.id not in outcome.left


def write_recipe(folder: Path) -> Path:
    """A recipe that rewrites the captions of the dataset `scenes`."""
    values = recipe_in(folder)
    values["recaption"] |= {"datasets": ["scenes"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def follow(recipe: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.cli", "cluster", "scale", "--name", NAME, "--pending", str(recipe)]
    with log.open("wb") as output:
        return subprocess.Popen([*command, "--follow", *options], stdout=output, stderr=subprocess.STDOUT)


def test_waiting_captions_bring_nodes_and_the_last_one_lets_them_go(live: Live, tmp_path: Path) -> None:
    dataset, recipe = write_scenes(tmp_path / "data" / "scenes", shards=8, rows=4), write_recipe(tmp_path)
    following = follow(recipe, tmp_path / "log", "--every", "1", "--at-most", "2")
    try:
        wait(lambda: len(workers(live)) == 2 and following.poll() is None)
        assert [(dict(one.bundle), one.count) for one in live.state().asked] == [({WORKER: 1.0}, 2)]
        time.sleep(4)  # longer than an unused node stays that nobody has asked for
        assert len(workers(live)) == 2
        captions = rewrite_of(load_recipe(recipe))
        write_captions(Dataset(dataset.root), captions, lambda: nullcontext(FirstSentence()))
        assert following.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        following.kill()
        following.wait()
    said = (tmp_path / "log").read_text()
    assert "rewrite:scenes@rewrite-v1 8; nodes: 2" in said and "nothing is kept by request any more" in said
    assert live.state().asked == ()
    wait(lambda: not workers(live))


def test_a_node_killed_in_the_middle_of_a_step_is_replaced_and_the_step_finished(live: Live, tmp_path: Path) -> None:
    def shard(number: int) -> int:
        with (tmp_path / f"begun-{number}").open("a") as file:
            file.write(f"{os.getppid()}\n")  # the raylet
        while not (tmp_path / "killed").exists():
            time.sleep(0.05)
        return number

    def begun() -> list[str]:
        return [pid for path in tmp_path.glob("begun-*") for pid in path.read_text().split()]

    asked = [ray.remote(num_cpus=1)(shard).remote(number) for number in range(MOST + 1)]
    wait(lambda: len(begun()) == MOST)  # one on each node, and one waits
    victim = next(tmp_path.glob("begun-*"))
    os.kill(int(victim.read_text()), signal.SIGKILL)
    wait(lambda: len(begun()) == MOST + 1)  # a new node took the one that waited, or the one that was under way
    (tmp_path / "killed").touch()
    assert ray.get(asked) == list(range(MOST + 1))
    assert len(victim.read_text().split()) == 2 and len(set(begun())) >= MOST + 1


def test_a_cluster_that_is_not_up_is_named() -> None:
    done = CliRunner().invoke(main, ["cluster", "status", "--name", "never"])
    assert done.exit_code == 2 and "harmon cluster up" in done.output


def test_a_second_start_is_refused(live: Live) -> None:
    done = cluster("up")
    assert done.exit_code == 2 and "is up already" in done.output


@soak
def test_wishes_of_a_follower_that_is_ended_are_released_and_those_of_a_killed_one_run_out(
    live: Live, tmp_path: Path
) -> None:
    write_scenes(tmp_path / "data" / "scenes", shards=1, rows=4)
    recipe = write_recipe(tmp_path)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        following = follow(recipe, tmp_path / "log", "--every", "1")
        wait(lambda: live.state().asked)
        following.send_signal(sign)
        following.wait(PATIENCE)
        wait(lambda: not live.state().asked)  # after SIGKILL the 63 s that the last wish holds


@soak
def test_recaptioning_by_vllms_batch_engine_brings_its_nodes_and_lets_them_go(live: Live, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", shards=4, rows=8)
    assert shutil.which("sh") and not workers(live)
    model, engine = "harmon/parts/demo/qwen", ["--engine", "vllm-offline", "--actors", "2"]
    command = [sys.executable, "-m", "flows.cli", "recaption", str(tmp_path / "scenes"), "--prompt", "rewrite-v1"]
    recaptioning = subprocess.Popen([*command, "--model", model, *engine])
    wait(lambda: len(workers(live)) == 2)
    assert recaptioning.wait(PATIENCE) == 0
    wait(lambda: not workers(live))


@soak
def test_a_training_node_is_spared_and_status_says_what_trains_there(live: Live, tmp_path: Path) -> None:
    job = make_job(tmp_path, small_stage(steps=10_000), dtype="float64", checkpoint_every=9_000)
    folder, api = stage_folder(job, training_key(job)), f"http://127.0.0.1:{Local(NAME).standing.api}"
    process = follower(write_job(job, folder), Launch(workers=1, submit=api))
    try:
        wait(lambda: process.poll() is None and metrics_lines(folder))
        told = cluster("status").output
        name = f"{training_key(job)[:12]}-1"
        assert f"job {name} (running): trains {job.stage.stage} in {folder}" in told and "RayTrainWorker" in told
        spared = cluster("scale", "--nodes", "0")
        assert spared.exit_code == 1 and "1 stay because a training runs there" in spared.output
        refused = cluster("down")
        assert refused.exit_code == 3 and "A training runs on" in refused.output
        before = len(metrics_lines(folder))
        wait(lambda: len(metrics_lines(folder)) > before)  # it goes on
        RayJobs(api, training_key(job)[:12]).stop(name)
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
        process.wait()
