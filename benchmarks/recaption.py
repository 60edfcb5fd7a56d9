"""The client of chat servers against a bare loop of the same HTTP library, on a server that answers after 200 ms.

python -m benchmarks.recaption [--quick]

Both ask the same simulator, in a process of its own, with at most 256 requests in flight, in alternating rounds;
medians are printed. The rate is held against the ideal of 256 / 0.2 s = 1,280 requests/s, the CPU time against the
bare loop's.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import aiohttp

from recaption.engines import Question
from recaption.prompt import Sampling, load_prompt
from recaption.vllm_engine import VllmEngine

SECONDS = 0.2
CONCURRENCY = 256
IDEAL = CONCURRENCY / SECONDS
MODEL = "tiny"
GOALS = {"rate": 0.95, "cpu": 0.60}
CAPTION = "A wide valley at dawn, with a river between dark pines and two cabins under a pink and golden sky. " * 6


def main() -> None:
    """Print rates and ratios of the client and the bare loop."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    quick = options.parse_args().quick
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


def ours(address: str, messages: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of the client, its start from a small window included."""
    sampling = Sampling(method="greedy", max_tokens=96)
    with VllmEngine([address], MODEL, CONCURRENCY) as engine:
        wall, cpu = time.perf_counter(), time.process_time()
        lots = ([Question(f"{n:032x}", 0, message, sampling)] for n, message in enumerate(messages))
        answered = sum(len(answers) for answers in engine.answers(lots))
        taken = time.perf_counter() - wall, time.process_time() - cpu
    assert answered == len(messages)
    return taken


def bare(address: str, messages: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of the least that asks the same: 256 loops of post and json."""

    async def run() -> tuple[float, float]:
        waiting = iter(messages)
        answered = 0

        async def ask(session: aiohttp.ClientSession) -> None:
            nonlocal answered
            for message in waiting:
                body = {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": message}],
                    "max_tokens": 96,
                    "temperature": 0.0,
                }
                async with session.post(f"{address}/v1/chat/completions", json=body) as response:
                    answered += bool(json.loads(await response.read())["choices"][0]["message"]["content"])

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(ask(session) for _ in range(CONCURRENCY)))
            taken = time.perf_counter() - wall, time.process_time() - cpu
        assert answered == len(messages)
        return taken

    return asyncio.run(run())


if __name__ == "__main__":
    main()
