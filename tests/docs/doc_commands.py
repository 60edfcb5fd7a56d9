"""The commands that the pages show, taken out of their code blocks, and read by the programs that they are for."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

PAGES = [
    Path("README.md"),
    Path("CONTRIBUTING.md"),
    *sorted(Path("docs").rglob("*.md")),
    *sorted(Path("infra").rglob("*.md")),
]
PROGRAMS = ("harmon", "make", "python", "ray")
CODE = re.compile(r"^(?: {4,}|\t)\S")
COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(harmon|make|python|ray)(?= )")
ENDS = {"&&", "||", ";", ">", ">>", "<", "&"}
PLACEHOLDER = re.compile(r"(--?)?[A-Z][A-Z0-9_]*([=:/.][A-Z0-9_]+)*(\.[a-z0-9]+)?")


@dataclass(frozen=True)
class Shown:
    """A command on a page."""

    page: Path
    line: int
    program: str
    words: tuple[str, ...]
    """What follows the program, brackets and what comes after the command taken away."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.program} {' '.join(self.words)}"


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a code block, fenced or indented; a continued line is one with its followers."""
    fence, lines, number = "", text.splitlines(), 0
    while number < len(lines):
        line = lines[number]
        number += 1
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
            continue
        if not fence and not CODE.match(line):
            continue
        first, indent = number, len(line) - len(line.lstrip())
        while number < len(lines) and _goes_on(line, lines[number], indent):
            line = f"{line.rstrip().removesuffix(chr(92)).rstrip()} {lines[number].strip()}"
            number += 1
        yield first, line.strip()


def _goes_on(line: str, following: str, indent: int) -> bool:
    if line.rstrip().endswith("\\"):
        return True
    deeper = len(following) - len(following.lstrip()) > indent
    return deeper and following.lstrip().startswith(("[", "--")) and bool(COMMAND.match(line.strip()))


def shown(page: Path) -> list[Shown]:
    """The commands on a page."""
    found = []
    for number, line in code_lines(page.read_text()):
        match = COMMAND.match(line)
        if match:
            found.append(Shown(page, number, match[1], tuple(_words(line[match.end() :]))))
    return found


def spans(page: Path) -> list[Shown]:
    """The commands that its sentences name, as `harmon audit --deep`."""
    found = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for span in re.findall(r"`(harmon [a-z][^`]*)`", line):
            found.append(Shown(page, number, "harmon", tuple(_words(span.removeprefix("harmon")))))
    return found


def _words(rest: str) -> list[str]:
    """The words of a command: not what is said of it after two spaces or a #, nor brackets of what may be left out."""
    quoted = r"""(?:"[^"]*"|'[^']*'|[^\s"'])+"""
    kept = re.match(rf"(?:\s?{quoted})*", rest.strip())
    text = kept[0] if kept else ""
    words = shlex.split(text.replace("\\|", "|"), comments=True)
    told: list[str] = []
    for place, word in enumerate(words):
        if word in ENDS or (word == "|" and not _other_way(words[place + 1 :])):
            break
        if word != "|":
            told.append(word)
    return [bare for word in told if (bare := _bare(word))]


def _other_way(following: Sequence[str]) -> bool:
    """Whether | stands between two ways of asking, not between two programs."""
    return bool(following) and (following[0].startswith("-") or bool(PLACEHOLDER.fullmatch(_bare(following[0]))))


def _bare(word: str) -> str:
    if word.startswith("[") and word.endswith("]") and "=" in word:  # [NAME=]FOLDER
        return word
    inside = word.strip("[]") if word.count("[") != word.count("]") or word.startswith("[") else word
    return inside.removesuffix("...") if len(inside) > 3 else inside


def is_placeholder(value: str) -> bool:
    """DATASET, KEY=VALUE, http://A:8000, …: what a person puts something else for."""
    return "..." in value or "…" in value or bool(PLACEHOLDER.fullmatch(value)) or bool(re.search(r"//[A-Z]+\b", value))


def wrong(command: Shown, program: click.Command, whole: bool = True) -> str | None:
    """What click finds wrong with a command: None where nothing is. With `whole`, nothing that it needs may lack."""
    words = list(command.words)
    while isinstance(program, click.Group):
        if not words:
            return None if not whole else "no command is named"
        if words[0].startswith("-"):
            return None if words[0] in ("--help", "-h", "--version") else f"there is no option {words[0]}"
        if words[0] not in program.commands:
            return f"there is no command {words[0]!r}"
        program = program.commands[words.pop(0)]
    context = click.Context(program, info_name=program.name)
    try:
        given, extra, _ = program.make_parser(context).parse_args(words)
    except click.UsageError as error:
        return None if not whole and "requires" in error.format_message() else error.format_message()
    if "help" in given:
        return None
    if extra:
        return f"nothing takes {extra}"
    said = (_wrong_value(parameter, given.get(parameter.name or ""), context, whole) for parameter in program.params)
    return next((one for one in said if one), None)


def _wrong_value(parameter: click.Parameter, value: Any, context: click.Context, whole: bool) -> str | None:
    values = [one for one in _flat(value) if isinstance(one, str)]
    if parameter.required and not values and whole:
        return f"{parameter.human_readable_name} is missing"
    if getattr(parameter, "is_flag", False) or isinstance(parameter.type, click.Path):
        return None
    for one in (part for text in values for part in _ways(text, parameter)):
        if is_placeholder(one):
            continue
        try:
            parameter.type.convert(one, parameter, context)
        except click.UsageError as error:
            return error.format_message()
    return None


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _ways(text: str, parameter: click.Parameter) -> list[str]:
    """failed|transient|missing as three values."""
    return text.split("|") if isinstance(parameter.type, click.Choice) else [text]


@cache
def targets() -> frozenset[str]:
    """What `make` can be asked for."""
    return frozenset(re.findall(r"^([a-z][a-z0-9-]*):", Path("Makefile").read_text(), re.MULTILINE))


def wrong_module(words: Sequence[str]) -> str | None:
    """What is wrong with `python -m MODULE ...`: no such module of ours, or an option that its package never names."""
    if words[:1] != ["-m"] or len(words) < 2:
        return None
    name = words[1]
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return f"there is no module {name}"
    sources = "".join(path.read_text() for path in Path(spec.origin).parent.glob("*.py"))
    absent = [one for one in words[2:] if one.startswith("--") and f'"{one.split("=")[0]}"' not in sources]
    return f"{name} has no option {absent[0]}" if absent else None
