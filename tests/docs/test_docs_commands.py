"""Every command on a page is one that the programs take: its name, its options, its arguments and their values."""

import re
from pathlib import Path

import click
import pytest

from flows.cli import main
from tests.docs.doc_commands import PAGES, Shown, code_lines, shown, spans, targets, wrong, wrong_module

OURS = re.compile(r"(?<![\w/.-])(?:infra|docs|flows|harmon|pipelines|recaption|filtering|tests|benchmarks)/[\w./-]*\w")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_harmon_takes_every_command_of_a_page(page: Path) -> None:
    said = {str(one): wrong(one, main) for one in shown(page) if one.program == "harmon"}
    assert {command: why for command, why in said.items() if why} == {}


@pytest.mark.parametrize("page", [one for one in PAGES if one.name != "unverified.md"], ids=str)  # names what lacks
def test_harmon_has_what_sentences_name(page: Path) -> None:
    said = {str(one): wrong(one, main, whole=False) for one in spans(page)}
    assert {command: why for command, why in said.items() if why} == {}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_and_python_find_what_a_page_asks_of_them(page: Path) -> None:
    for one in shown(page):
        if one.program == "make":
            assert set(one.words) <= targets(), one
        if one.program == "python":
            assert wrong_module(list(one.words)) is None, one


def test_ray_takes_every_command_of_its_own() -> None:
    asked = [one for page in PAGES for one in shown(page) if one.program == "ray"]
    if not asked:
        return
    from ray.scripts.scripts import cli

    said = {str(one): wrong(one, cli) for one in asked}
    assert {command: why for command, why in said.items() if why} == {}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_of_this_checkout_that_commands_name_are_there(page: Path) -> None:
    named = {(number, one) for number, line in code_lines(page.read_text()) for one in OURS.findall(line)}
    made = {"docs/proof", "harmon/scratch"}  # by a command, or in a person's cache
    assert [
        one for one in sorted(named) if not Path(one[1]).exists() and not any(one[1].startswith(m) for m in made)
    ] == []


def test_commands_are_found() -> None:
    commands = [one for page in PAGES for one in shown(page)]
    assert len([one for one in commands if one.program == "harmon"]) > 60
    named = {one.words[0] for one in commands if one.program == "harmon"}
    assert set(main.commands) - named == set()  # every command of ours is shown somewhere


@pytest.mark.parametrize(
    ("line", "why"),
    {
        "harmon audit DATASET": None,
        "harmon audit DATASET --deep  reads every byte": None,
        "harmon audit data/x --depth  # checks": "No such option",
        "harmon adit DATASET": "no command 'adit'",
        "harmon audit": "is missing",
        "harmon audit A B": "nothing takes",
        "harmon export DATASET croissant|openlineage": None,
        "harmon export DATASET croissant|openlinage": "is not one of",
        "harmon train RECIPE --stage S [--resume] [--stop-after N] [--gpus 8]": None,
        "harmon train RECIPE --stage S --gpus eight": "is not a valid",
        "harmon forget DATASET --keys F | --urls F | --sha256 F [--follow]": None,
        "harmon show DATASET | less": None,
        "HARMON_SCRATCH=/tmp harmon audit DATASET && harmon adit": None,
        "harmon recaption DATASET --prompt": "requires an argument",
    }.items(),
)
def test_what_is_wrong_with_a_command_is_seen(line: str, why: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Do this:\n\n    {line}\n")
    (command,) = shown(page)
    said = wrong(command, main)
    assert said is None if why is None else said and why in said, said


def test_blocks_of_both_kinds_are_read_and_lines_joined(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "harmon is a word here\n\n```sh\nharmon audit A \\\n    --deep\nmake demo\n```\n\n    harmon run RECIPE\n"
        "                    [--until STEP]\n    python -m harmon.parity DIR    replays\n"
    )
    found = [(one.program, one.words) for one in shown(page)]
    assert found == [
        ("harmon", ("audit", "A", "--deep")),
        ("make", ("demo",)),
        ("harmon", ("run", "RECIPE", "--until", "STEP")),
        ("python", ("-m", "harmon.parity", "DIR")),
    ]


def test_a_module_that_is_not_there_is_seen() -> None:
    assert wrong_module(["-m", "harmon.parity", "DIR"]) is None
    assert wrong_module(["-m", "harmon.parrot", "DIR"]) == "there is no module harmon.parrot"
    assert wrong_module(["-m", "harmon.parity", "DIR", "--fast"]) == "harmon.parity has no option --fast"


def test_another_programs_commands_are_read_by_it() -> None:
    @click.group()
    def other() -> None: ...

    assert wrong(Shown(Path("page"), 1, "ray", ("status",)), other) == "there is no command 'status'"
