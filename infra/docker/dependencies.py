"""Prints what pyproject.toml depends on, one a line: python dependencies.py pyproject.toml [EXTRA...]

So an image installs them before the code is copied, and a change of code leaves that layer as it was.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """The project's dependencies, and those of `extras`. Raises KeyError for an extra that it does not have."""
    table = tomllib.loads(project.read_text())["project"]
    optional: dict[str, list[str]] = table["optional-dependencies"]
    return [*table["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
