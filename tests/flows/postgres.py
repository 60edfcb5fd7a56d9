"""A PostgreSQL server of Debian's package, on a free port, which ends with its block."""

import getpass
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.loopback import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parent.name))
"""Of each version that is installed, oldest first; Prefect asks for 14.9 or newer."""


@contextmanager
def postgres() -> Iterator[str]:
    """Where Prefect's server finds an empty database."""
    bin_folder, port = PROGRAMS[-1], free_port()
    folder = Path(tempfile.mkdtemp(prefix="postgres", dir="/tmp"))  # its own user must reach it
    if getpass.getuser() == "root":
        shutil.chown(folder, "postgres")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [str(bin_folder / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    try:
        _do([str(bin_folder / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "prefect"])
        _do([*control, "-l", str(folder / "log"), "-o", options, "start"])
        try:
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            _do([*control, "-m", "fast", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _do(command: list[str]) -> None:
    """It refuses to run as root."""
    as_other = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
    done = subprocess.run(
        [*as_other, *command], cwd="/tmp", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
