"""The demo's recipe at the end-to-end test's size, run as a person would: `harmon run` in a process of its own."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.dataset import Dataset
from pipelines.loopback import free_port

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "flows" / "recipes" / "demo.yaml"
DATASETS = ("photographs", "scenes", "corpus", "refined")
STAGES = 3
SIZES = (
    "web.classes=60",
    "web.scenes=90",
    "web.texts=30",
    "sources.scenes.rows_per_shard=64",
    "sets.corpus.rows_per_shard=64",
    *(f"training.stages.{stage}.departures.steps=4" for stage in range(STAGES)),
    "training.checkpoint_every=2",
    "evaluation.held_out=4",
    "evaluation.seen=4",
    "evaluation.two=4",
    "evaluation.asked=4",
    "evaluation.sampling.ar_steps=4",
    'evaluation.sampling.diffusion_steps="10"',
)


@dataclass(frozen=True)
class SmallRun:
    """Where a run writes, the port in its links, and the mark that all its processes carry in their environment."""

    folder: Path
    port: int
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def traces(self) -> Path:
        return self.folder / "traces.jsonl"

    @property
    def settings(self) -> tuple[str, ...]:
        """What the recipe is set to."""
        return (*SIZES, f"data={self.data}", f"runs={self.run}", f"web.port={self.port}")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flows.cli", "run", str(RECIPE), *arguments]
        for setting in self.settings:
            command += ["--set", setting]
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "HARMON_TEST_MARK": self.mark,
            "OMP_NUM_THREADS": "1",
            "HARMON_LOG": "json",
            "HARMON_TRACES": str(self.traces),
        }
        with (self.folder / "out.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, *arguments: str) -> str:
        """Run to the end; what this run printed."""
        before = len(self.log())
        code = self.start(*arguments).wait(timeout=900)
        assert code == 0, self.log()[-4000:]
        return self.log()[before:]

    def log(self) -> str:
        path = self.folder / "out.log"
        return path.read_text() if path.exists() else ""

    def hashes(self) -> dict[str, str]:
        heads = {name: Dataset(self.data / name).head for name in DATASETS}
        return {name: head.content_hash for name, head in heads.items() if head}

    def processes(self) -> list[str]:
        """Command lines of the living processes that this run started, directly or not."""
        return list(_marked(self.mark))


def _marked(mark: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended meanwhile
            continue
        if mark.encode() in environment and command:
            yield command


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """One undisturbed run that has finished."""
    run = SmallRun(tmp_path_factory.mktemp("small-run"), free_port())
    run.finish()
    return run
