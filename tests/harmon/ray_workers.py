"""Ray Train's workers of one driver, and of no other that runs on this machine."""

from pathlib import Path


def workers_of(driver: int) -> list[int]:
    """Process ids of the workers whose Ray the process `driver` has started."""
    return [pid for pid in processes() if _title(pid).startswith(b"ray::RayTrainWorker") and driver in ancestors(pid)]


def processes() -> list[int]:
    """All processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def ancestors(pid: int) -> list[int]:
    """A process's parent, its parent's, and so on."""
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found
