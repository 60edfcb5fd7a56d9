"""Replaying every file of a folder of recorded cases.

A file is `{note, GROUP: {source, cases: [...]}}`; two kinds differ: a group without `source` maps names to cases, and a
file may hold `cases` itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmon.evaluation.vectors import generation, understanding
from harmon.evaluation.vectors.case import Case, failure
from pipelines.errors import ConfigurationError

REPLAYS = understanding.GROUPS | generation.GROUPS
_DESCRIBES = frozenset(("note", "source"))


@dataclass(frozen=True)
class Result:
    """How the cases of one group did; `first_failure` says what is wrong with the first that failed."""

    file: str
    group: str
    source: str
    passed: int
    total: int
    first_failure: str | None

    @property
    def name(self) -> str:
        """File and group, without the group where the file has none."""
        return f"{self.file}.{self.group}" if self.group else self.file

    def __str__(self) -> str:
        line = f"{self.name} {self.passed}/{self.total} ({self.source})"
        return line if self.first_failure is None else f"{line}: {self.first_failure}"


def replay_folder(folder: Path) -> Iterator[Result]:
    """One result for each group of each `*.json` in `folder`; a group or file that is not known fails.

    Raises:
        ConfigurationError: no folder, or no JSON file in it.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ConfigurationError(f"{folder} holds no recorded vectors; give a folder of .json files.")
    for file in files:
        yield from replay_file(file)


def replay_file(file: Path) -> list[Result]:
    """One result for each group of `file`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [_unreadable(file.stem, "", f"it cannot be read: {error}")]
    if not isinstance(content, dict):
        return [_unreadable(file.stem, "", "it is no JSON object of groups")]
    if "cases" in content:
        return [_replay(file.stem, "", content)]
    groups = [name for name in content if name not in _DESCRIBES]
    if not groups:
        return [_unreadable(file.stem, "", "it has no group of cases")]
    return [_replay(file.stem, group, content[group]) for group in groups]


def _replay(file: str, group: str, recorded: Any) -> Result:
    cases = _cases(recorded)
    if cases is None:
        return _unreadable(file, group, "its cases are not laid out as a list or by name")
    known = REPLAYS.get((file, group))
    if known is None:
        return Result(file, group, _source(recorded), 0, len(cases), "no scorer here is known by this name")
    if not cases:
        return _unreadable(file, group, "it has no case")
    failures = [(number, why) for number, case in enumerate(cases) if (why := failure(known, case)) is not None]
    first = f"case {failures[0][0]} ({_title(cases[failures[0][0]])}): {failures[0][1]}" if failures else None
    return Result(file, group, _source(recorded), len(cases) - len(failures), len(cases), first)


def _cases(recorded: Any) -> Sequence[Case] | None:
    if not isinstance(recorded, Mapping):
        return None
    if "cases" in recorded:
        cases = recorded["cases"]
        return cases if isinstance(cases, list) and all(isinstance(case, dict) for case in cases) else None
    named = {name: case for name, case in recorded.items() if name not in _DESCRIBES}
    if not all(isinstance(case, dict) for case in named.values()):
        return None
    return [{"name": name, **case} for name, case in named.items()]


def _source(recorded: Mapping[str, Any]) -> str:
    source = recorded.get("source", recorded.get("note", "derived"))
    return "; ".join(source) if isinstance(source, list) else str(source)


def _title(case: Case) -> str:
    for key in ("name", "text", "response", "pred"):
        if key in case:
            return repr(case[key])
    return ", ".join(f"{key}={value!r}" for key, value in case.items())[:80]


def _unreadable(file: str, group: str, why: str) -> Result:
    return Result(file, group, "unknown", 0, 1, why)
