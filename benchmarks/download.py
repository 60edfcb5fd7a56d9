"""How fast links are fetched: img2dataset behind the guard and the native engine, against img2dataset alone.

img2dataset is measured as it is (`plain`), and without two libraries that it imports and does not use (`lean`), which
ours leave out: most of its start goes there. All fetch the same list from one loopback server, a process of its own
that is not counted, into img2dataset's layout, without re-encoding, with the same processes and threads. Counted are
the CPU-seconds of the fetching processes, start included, and of our supervisor. The paths alternate; medians.

    python -m benchmarks.download [--images 2000] [--kilobytes 50] [--rounds 5]
"""

import argparse
import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.fetch import FetchSettings, Links, fetch, interpreter, write_links
from pipelines.landed import Landed
from pipelines.rules import Rules

PROCESSES, THREADS, SHARD = 2, 32, 500
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
REAPED = 1.0  # seconds after which the last worker has ended
HOW = FetchSettings(processes=PROCESSES, threads=THREADS, per_host=PROCESSES * THREADS, per_second=1e6)
RULES = Rules(allow=("127.0.0.1/32",))

SERVER = """
import asyncio, sys
body = bytes(range(256)) * (int(sys.argv[1]) * 4)
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body

class Answer(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.seen = transport, b""
    def data_received(self, data):
        self.seen += data
        while b"\\r\\n\\r\\n" in self.seen:
            head, _, self.seen = self.seen.partition(b"\\r\\n\\r\\n")
            self.transport.write(answer)
            if b"connection: close" in head.lower(): self.transport.close()

async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

LEAN = """
import sys
from types import ModuleType
for name in ("wandb", "albumentations"):
    sys.modules[name] = ModuleType(name)
"""
PLAIN = """
import sys
if __name__ == "__main__":
    from img2dataset import download
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="txt", output_format="webdataset",
             number_sample_per_shard={shard}, processes_count={processes}, thread_count={threads}, resize_mode="no",
             disable_all_reencoding=True, extract_exif=False, compute_hash=None)
"""


@contextmanager
def server(kilobytes: int) -> Iterator[str]:
    """The address of a server that gives the same bytes for every path."""
    with subprocess.Popen([sys.executable, "-c", SERVER, str(kilobytes)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def plain(links: list[str], folder: Path, before: str = "") -> None:
    """img2dataset alone."""
    script, listed = folder / "plain.py", folder / "links.txt"
    script.write_text(before + PLAIN.format(shard=SHARD, processes=PROCESSES, threads=THREADS))
    listed.write_text("\n".join(links))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(
        [interpreter(), "-I", script, listed, folder / "out"], env=environment, check=True, capture_output=True
    )
    assert len(list((folder / "out").glob("*.tar"))) == -(-len(links) // SHARD)


def lean(links: list[str], folder: Path) -> None:
    """img2dataset alone, without two libraries that it imports and does not use here; ours leave them out as well."""
    plain(links, folder, LEAN)


def guarded(links: list[str], folder: Path) -> None:
    """img2dataset behind the guard."""
    _all(list(fetch(_shards(links, folder), folder, RULES, HOW)), links)


def native(links: list[str], folder: Path) -> None:
    """The native engine."""
    _all(list(fetch(_shards(links, folder), folder, RULES, HOW, "native")), links)


def _shards(links: list[str], folder: Path) -> dict[int, Links]:
    return {
        start // SHARD: write_links(folder / f"{start}.links", links[start : start + SHARD])
        for start in range(0, len(links), SHARD)
    }


def _all(landed: list[Landed], links: list[str]) -> None:
    assert sum(reason is None for shard in landed for reason in shard.reasons()) == len(links)


def cpu_seconds(path: Callable[[list[str], Path], None], links: list[str]) -> float:
    """CPU-seconds of this process and of everything that it starts meanwhile, orphans included."""
    with tempfile.TemporaryDirectory() as folder:
        before = _spent()
        path(links, Path(folder))
        time.sleep(REAPED)
        return _spent() - before


def _spent() -> float:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # orphaned workers, which this process inherits and has to count
            pass
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Print images per CPU-second of each path, and the ratios to img2dataset alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    paths = {"plain": plain, "lean": lean, "guarded": guarded, "native": native}
    spent: dict[str, list[float]] = {name: [] for name in paths}
    with server(options.kilobytes) as root:
        links = [f"{root}/{number}.jpg" for number in range(options.images)]
        for _ in range(options.rounds):
            for name, path in paths.items():
                spent[name].append(cpu_seconds(path, links))
    medians = {name: statistics.median(seconds) for name, seconds in spent.items()}
    for name, goal in {"plain": "", "lean": "", "guarded": " (goal 0.95x)", "native": " (goal 4x)"}.items():
        ratios = [f"{medians[peer] / medians[name]:.2f}x {peer}" for peer in ("plain", "lean")]
        print(
            f"download, {name}: {options.images / medians[name]:.0f} images/CPU-s, {ratios[0]}{goal}, {ratios[1]}; "
            f"CPU-s of the rounds: {', '.join(f'{seconds:.2f}' for seconds in spent[name])}"
        )


if __name__ == "__main__":
    main()
