"""The client of chat servers against a bare loop of the same HTTP library, on a server that answers after 200 ms.

python -m benchmarks.recaption [--quick] [--vllm FOLDER]

Both ask the same simulator, in a process of its own, with at most 256 requests in flight, in alternating rounds;
medians are printed. The rate is held against the ideal of 256 / 0.2 s = 1,280 requests/s, the CPU time against the
bare loop's. With --vllm, a real vLLM server of the model in FOLDER is asked to rewrite scenes instead: the client
against the bare loop at its best fixed concurrency, and vLLM's own batch engine beside them.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from pipelines.scenes import dense_caption, make_scene
from recaption.engines import Question
from recaption.language_model import language_model
from recaption.offline_engine import OfflineEngine
from recaption.prompt import Sampling, load_prompt
from recaption.server import VllmServer
from recaption.vllm_engine import VllmEngine

SECONDS = 0.2
CONCURRENCY = 256
IDEAL = CONCURRENCY / SECONDS
MODEL = "tiny"
GOALS = {"rate": 0.95, "cpu": 0.60}
CAPTION = "A wide valley at dawn, with a river between dark pines and two cabins under a pink and golden sky. " * 6


def main(given: Sequence[str] | None = None) -> None:
    """Print rates and ratios of the client and the bare loop."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    options.add_argument("--vllm", metavar="FOLDER", type=Path, help="a real server of this model instead")
    arguments = options.parse_args(given)
    if arguments.vllm:
        real(arguments.vllm, 200 if arguments.quick else 400, 1 if arguments.quick else 3)
    else:
        simulated(arguments.quick)


def simulated(quick: bool) -> None:
    """Print rates and ratios on the simulator."""
    rounds, number = (1, 5_000) if quick else (3, 20_000)
    messages = [load_prompt("rewrite-v1").message(f"Scene {n}. {CAPTION}") for n in range(number)]
    with simulator(SECONDS) as address:
        runs = [(ours(address, messages), bare(address, messages)) for _ in range(rounds)]
    rates = [number / wall for (wall, _), _ in runs]
    ratios = [theirs / mine for (_, mine), (_, theirs) in runs]
    rate, bare_rate = statistics.median(rates), statistics.median(number / wall for _, (wall, _) in runs)
    cpu = statistics.median(number / mine for (_, mine), _ in runs)
    print(f"{number:,} requests, {CONCURRENCY} in flight, answers after {SECONDS * 1e3:.0f} ms, medians of {rounds}")
    print(f"client: {rate:,.0f} requests/s, {rate / IDEAL:.1%} of the ideal {IDEAL:,.0f} (goal {GOALS['rate']:.0%})")
    print(f"bare loop of aiohttp: {bare_rate:,.0f} requests/s, {bare_rate / IDEAL:.1%} of the ideal")
    ratio = statistics.median(ratios)
    print(f"client: {cpu:,.0f} requests per CPU-second, {ratio:.1%} of the bare loop's (goal {GOALS['cpu']:.0%})")


def real(folder: Path, number: int, rounds: int) -> None:
    """Print rates and ratios on a vLLM server."""
    model, prompt = language_model(folder), load_prompt("rewrite-v1")
    messages = [prompt.message(dense_caption(make_scene(41, n))) for n in range(number)]
    with tempfile.TemporaryDirectory() as logs:
        with VllmServer(model, Path(logs) / "vllm.log") as server:
            ours(server.address, messages, server.model)  # the first requests are slow, whoever sends them
            walls: dict[int, list[float]] = {concurrency: [] for concurrency in (32, 64, 128, 256)}
            mine: list[float] = []
            for _ in range(rounds):
                for concurrency, taken in walls.items():
                    taken.append(bare(server.address, messages, server.model, concurrency)[0])
                    mine.append(ours(server.address, messages, server.model)[0])
        with OfflineEngine(model, 1, 0, Path(logs) / "offline.log") as engine:
            offline = min(_timed(engine, messages) for _ in range(rounds + 1))
    best = min(walls, key=lambda concurrency: statistics.median(walls[concurrency]))
    theirs, own = statistics.median(walls[best]), statistics.median(mine)
    print(f"{number} rewrites by {model.name} on a vLLM server, medians of {rounds} and {len(mine)} alternating rounds")
    for concurrency, taken in walls.items():
        print(f"bare loop, {concurrency} in flight: {number / statistics.median(taken):.1f} requests/s")
    print(f"client: {number / own:.1f} requests/s, {theirs / own:.1%} of the bare loop's best, at {best} (goal 95%)")
    print(f"vLLM's batch engine in a Ray actor, its best of {rounds + 1}: {number / offline:.1f} requests/s")


def _timed(engine: OfflineEngine, messages: Sequence[str]) -> float:
    sampling = load_prompt("rewrite-v1").sampling
    lot = [Question(f"{n:032x}", 0, message, sampling) for n, message in enumerate(messages)]
    began = time.perf_counter()
    assert sum(map(len, engine.answers(iter([lot])))) == len(messages)
    return time.perf_counter() - began


@contextmanager
def simulator(seconds: float) -> Iterator[str]:
    """The address of a simulator in a process of its own."""
    command = [sys.executable, "-m", "tests.recaption.simulator", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def ours(address: str, messages: Sequence[str], model: str = MODEL) -> tuple[float, float]:
    """Wall and CPU seconds of the client, its start from a small window included."""
    sampling = Sampling(method="greedy", max_tokens=96)
    with VllmEngine([address], model, CONCURRENCY) as engine:
        wall, cpu = time.perf_counter(), time.process_time()
        lots = ([Question(f"{n:032x}", 0, message, sampling)] for n, message in enumerate(messages))
        answered = sum(len(answers) for answers in engine.answers(lots))
        taken = time.perf_counter() - wall, time.process_time() - cpu
    assert answered == len(messages)
    return taken


def bare(
    address: str, messages: Sequence[str], model: str = MODEL, concurrency: int = CONCURRENCY
) -> tuple[float, float]:
    """Wall and CPU seconds of the least that asks the same: so many loops of post and json."""

    async def run() -> tuple[float, float]:
        waiting = iter(messages)
        answered = 0

        async def ask(session: aiohttp.ClientSession) -> None:
            nonlocal answered
            for message in waiting:
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": message}],
                    "max_tokens": 96,
                    "temperature": 0.0,
                    "repetition_penalty": 1.0,
                }
                async with session.post(f"{address}/v1/chat/completions", json=body) as response:
                    answered += bool(json.loads(await response.read())["choices"][0]["message"]["content"])

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(ask(session) for _ in range(concurrency)))
            taken = time.perf_counter() - wall, time.process_time() - cpu
        assert answered == len(messages)
        return taken

    return asyncio.run(run())


if __name__ == "__main__":
    main()
