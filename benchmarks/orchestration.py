"""What Prefect costs around the work: a recipe of 12 empty steps from nothing to its end, and the flow's own CPU during
a step of shards that take a second each: python -m benchmarks.orchestration

The recipe starts Prefect's embedded server, as `harmon run` does. The step reports each second, as 5,000 shards would,
for a while, and asks every other second whether the flow run is cancelled, as the follower of a Ray job does; the share
of CPU is that of the flow's process over that while, without the server's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.flow_run import cancellation
from flows.recipe import load_recipe
from flows.run import _as_flow
from flows.work_item import Work
from pipelines.steps import Progress, ProgressCallback

STEPS, SHARDS, ROWS = 12, 5000, 1000
RECIPE = Path(__file__).parents[1] / "flows" / "recipes" / "demo.yaml"


def main() -> None:
    """Measure both, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="that the step lasts")
    parser.add_argument("--part", choices=["recipe", "step"], help="measure this in this process")
    chosen = parser.parse_args()
    if chosen.part is None:
        for part in ("recipe", "step"):
            command = [sys.executable, "-m", "benchmarks.orchestration", "--part", part]
            with tempfile.TemporaryDirectory() as home:
                environment = os.environ | {"PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "WARNING"}
                environment.pop("PREFECT_API_URL", None)
                started = time.perf_counter()
                subprocess.run([*command, "--seconds", str(chosen.seconds)], env=environment, check=True)
                print(json.dumps({"part": part, "process_seconds": round(time.perf_counter() - started, 1)}))
    elif chosen.part == "recipe":
        whole_recipe()
    else:
        one_step(chosen.seconds)


def whole_recipe() -> None:
    """Wall time of 12 empty steps, the embedded server's start among it."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(RECIPE, [f"runs={folder}/run", f"data={folder}/data"])
        started = time.perf_counter()
        did = _as_flow(recipe, [Work("empty", str(number), lambda: False, _nothing) for number in range(STEPS)])
        print(json.dumps({"steps": len(did), "seconds": round(time.perf_counter() - started, 1)}))


def one_step(seconds: int) -> None:
    """The flow's CPU while a step tells of a shard each second, and what the others of 5,000 would take at that."""
    measured: dict[str, float] = {}

    def do(progress: ProgressCallback) -> None:
        cancelled = cancellation()
        before = _cpu()
        for shard in range(1, seconds + 1):
            time.sleep(1.0)
            progress(Progress("empty", "shards", shard, SHARDS, shard * ROWS))
            assert shard % 2 or not cancelled()
        measured["cpu_seconds"] = _cpu() - before

    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(RECIPE, [f"runs={folder}/run", f"data={folder}/data"])
        _as_flow(recipe, [Work("empty", "shards", lambda: False, do)])
    share = measured["cpu_seconds"] / seconds
    told = {"shards": seconds, "cpu_seconds": round(measured["cpu_seconds"], 2), "share": round(share, 4)}
    print(json.dumps(told | {"cpu_seconds_of_5000_shards": round(share * SHARDS, 1)}))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _nothing(_: ProgressCallback) -> None:
    """An empty step."""


if __name__ == "__main__":
    main()
