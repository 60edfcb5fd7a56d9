"""Writers in processes of their own, forked from one that has done its imports, so that hundreds can be killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).with_name("small_datasets.py")
REPOSITORY = Path(__file__).parents[2]


class Victim:
    """A server of forks: one writer at a time, which may be killed."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("wb"),
            env=environment,
            cwd=REPOSITORY,
            text=True,
        )
        self._pid = 0

    def start(self, root: str, **order: Any) -> None:
        """Begin to write the dataset at `root` (small_datasets._obey says what else it may be told)."""
        self._pid = self._ask(json.dumps({"root": root, **order}))

    def kill(self) -> None:
        """kill -9; nothing happens to one that has ended."""
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status: 0 finished, 3 refused, -9 killed. Anything else fails the test."""
        status = self._ask("wait")
        assert status in (0, 3, -9), self.errors.read_text()[-2000:]
        return status

    def _ask(self, line: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, self.errors.read_text()[-2000:]
        return int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
