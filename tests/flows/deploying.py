"""`harmon deploy` several times in one process of its own: python tests/flows/deploying.py '[[ARGUMENT, ...], ...]'

Prefect takes a server's address once in a process, so tests do not deploy in theirs. Prints a JSON line each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def deploy_each(api: str, folder: Path, *runs: Sequence[str]) -> list[dict[str, Any]]:
    """What each run says, done one after the other from `folder`."""
    environment = os.environ | {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "deploying"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, __file__, json.dumps(list(map(list, runs)))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    from click.testing import CliRunner

    from flows.cli import main

    for arguments in json.loads(sys.argv[1]):
        result = CliRunner().invoke(main, ["deploy", "--json", *arguments])
        assert result.exit_code == 0, (arguments, result.output)
        print(result.stdout.strip(), flush=True)
