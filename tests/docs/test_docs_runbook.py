"""What the runbook quotes is what the system says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PAGE = Path("docs/runbook.md")
PACKAGES = ("pipelines", "recaption", "filtering", "harmon", "flows")


def quotes() -> list[str]:
    return [line.removeprefix("> ") for line in PAGE.read_text().splitlines() if line.startswith("> ")]


@cache
def sentences() -> frozenset[str]:
    """Every text of the files that may hold a quote, what is put into it as …"""
    words = [set(re.findall(r"[A-Za-z]{6,}", quote)) for quote in quotes()]
    sources = [path.read_text() for name in PACKAGES for path in Path(name).rglob("*.py")]
    trees = [ast.parse(text) for text in sources if any(all(word in text for word in one) for one in words)]
    return frozenset(text for tree in trees for node in ast.walk(tree) for text in _text(node))


def _text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[-\d.]*[sdgf]", "…", node.value)
    elif isinstance(node, ast.JoinedStr):
        parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
        yield "".join(str(part) for part in parts)


def test_twenty_things_are_told_each_with_a_cause_and_what_to_do() -> None:
    numbers = [int(one) for one in re.findall(r"^### (\d+)\. ", PAGE.read_text(), re.MULTILINE)]
    assert numbers == list(range(1, 21))


@pytest.mark.parametrize("quote", quotes(), ids=lambda text: text[:40])
def test_a_quoted_sentence_is_one_of_the_systems(quote: str) -> None:
    assert quote in sentences()


def test_kinds_of_findings_that_it_names_are_those_of_the_audit() -> None:
    from pipelines.findings import HARMLESS, UNSOUND

    named = set(re.findall(r"`((?:size|hash|file|index|foreign|leftover)_[a-z]+)`", PAGE.read_text()))
    assert named and named <= UNSOUND.keys() | HARMLESS.keys()
