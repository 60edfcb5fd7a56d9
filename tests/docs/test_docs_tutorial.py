"""The tutorial does what it says: its blocks titled *tried* are run in order, in a folder where nothing was before."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main

PAGE = Path("docs/tutorial.md")
BLOCK = re.compile(r'^```(sh title="tried"|text)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Commands of the page, and what it says that they print; empty where it says nothing."""

    commands: tuple[str, ...]
    told: str

    def __str__(self) -> str:
        return self.commands[0]


def blocks() -> Iterator[Block]:
    found = BLOCK.findall(PAGE.read_text())
    for place, (kind, text) in enumerate(found):
        if kind != "text":
            follows = found[place + 1 : place + 2]
            told = follows[0][1] if follows and follows[0][0] == "text" else ""
            yield Block(tuple(text.splitlines()), told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the checkout, but without data and runs."""
    place = tmp_path_factory.mktemp("tutorial")
    for one in (".venv", "flows", "harmon", "pipelines", "recaption", "filtering"):
        (place / one).symlink_to(Path(one).absolute())
    return place


def run(command: str) -> str:
    """What a line prints on stdout; it must end as the page says, with 0 or the `# exit N` behind it."""
    command, _, code = command.partition(" # exit ")
    if not command.startswith("harmon "):
        return subprocess.run(["bash", "-euc", command], check=True, capture_output=True, text=True, timeout=60).stdout
    done = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="harmon")
    assert done.exit_code == int(code or 0), f"{command}: {done.exit_code}\n{done.output}\n{done.exception!r}"
    return done.stdout


def matches(told: str, output: str) -> bool:
    """Whether the output has the told lines in their order; … stands for anything, alone for any lines."""
    lines = [r"(?:.*\n)*" if line == "…" else f"{re.escape(line).replace('…', '.*')}\n" for line in told.splitlines()]
    return re.search(rf"^{''.join(lines)}", f"{output}\n", re.MULTILINE) is not None


def test_the_tutorial_does_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks())
    assert len(found) >= 6
    monkeypatch.chdir(folder)
    for block in found:
        output = "".join(run(command) for command in block.commands)
        assert matches(block.told, output), f"{block} printed\n{output}\nand not\n{block.told}"


def test_what_is_told_is_compared() -> None:
    assert matches("a: 3 rows\n…\nend …", "x\na: 3 rows\nmore\nmore\nend of it\n")
    assert not matches("a: 3 rows\nend", "a: 3 rows\nmore\nend\n")
    assert not matches("a: 3 rows", "a: 4 rows")
