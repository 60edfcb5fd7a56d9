"""Pictures a second from a server: one request at a time, and many at once.

python -m benchmarks.serving [--quick] [--together 32] [--alone 8] [--turns 3]
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from harmon.convert.released import model_sizes
from harmon.latents import load_autoencoder
from harmon.model.harmon import Harmon
from harmon.serving.app import application
from harmon.serving.server import bound, server
from harmon.serving.settings import ServingSettings
from harmon.text import ChatText
from harmon.trained import Trained

DEMO = Path(__file__).parents[1] / "harmon" / "parts" / "demo"
SAMPLING = {"ar_steps": 8, "diffusion_steps": "25", "clip_x0": 9.0}  # flows/recipes/demo.yaml
GOAL = 2.0  # issue 10: 32 requests at once against one at a time


def main(arguments: list[str] | None = None) -> float:
    """Print both rates; returns how many times as many pictures a CPU-second gives."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one turn, few pictures: whether it runs, and about how fast"
    )
    parser.add_argument("--together", type=int, default=32, help="requests at once")
    parser.add_argument("--alone", type=int, default=16, help="requests one after the other")
    parser.add_argument("--turns", type=int, default=3, help="of both, whose median is taken")
    asked = parser.parse_args(arguments)
    alone, turns = (4, 1) if asked.quick else (asked.alone, asked.turns)
    torch.set_num_threads(1)
    limits = httpx.Limits(max_connections=asked.together)
    with _served() as address, httpx.Client(base_url=address, timeout=600, limits=limits) as client:
        _draw(client, 0)  # tables and memory are made
        rates = [(_rate(client, alone, 1), _rate(client, asked.together, asked.together)) for _ in range(turns)]
    one, many = (tuple(statistics.median(rate[kind][unit] for rate in rates) for unit in (0, 1)) for kind in (0, 1))
    ratio = many[1] / one[1]
    print(f"the demo's sizes, 128 px, {SAMPLING['ar_steps']} AR steps, {SAMPLING['diffusion_steps']} diffusion steps")
    print(f"one request at a time:     {one[0]:6.2f} pictures/s, {one[1]:6.2f} per CPU-second")
    print(f"{asked.together:3} requests at a time:    {many[0]:6.2f} pictures/s, {many[1]:6.2f} per CPU-second")
    print(f"{ratio:.1f}x per CPU-second, {many[0] / one[0]:.1f}x by the clock (goal {GOAL:.0f}x)")
    return ratio


def _rate(client: httpx.Client, requests: int, at_once: int) -> tuple[float, float]:
    """Pictures a second, and a CPU-second of this process, clients included."""
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(_draw, [client] * requests, range(requests)))
    return requests / (time.perf_counter() - wall), requests / (time.process_time() - cpu)


def _draw(client: httpx.Client, seed: int) -> None:
    asked = {"prompt": "a red circle above a blue square", "seed": seed}
    client.post("/v1/images/generations", json=asked).raise_for_status()


@contextmanager
def _served() -> Iterator[str]:
    app = application(_untrained(), ServingSettings(), loopback=True)
    with bound("127.0.0.1", 0) as listening:
        one = server(app)
        thread = threading.Thread(target=one.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not one.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            one.should_exit = True
            thread.join()


def _untrained() -> Trained:
    """The demo's sizes with random weights: drawing costs the same."""
    torch.manual_seed(0)
    return Trained(
        model=Harmon(model_sizes(str(DEMO / "harmon.yaml"))).eval(),
        text=ChatText(DEMO / "qwen"),
        autoencoder=load_autoencoder(DEMO / "patch_latent.safetensors"),
        px=128,
        sampling=SAMPLING,
        weights=(),
        stage="",
        step=0,
        fingerprint="",
    )


if __name__ == "__main__":
    main()
