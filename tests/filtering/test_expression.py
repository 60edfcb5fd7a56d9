"""Conditions mean what they say, and nothing but the grammar is ever read."""

from pathlib import Path

import pytest

from filtering.expression import names_in
from filtering.grammar import parse_condition
from filtering.rows import ShardRows
from pipelines.errors import ConfigurationError
from tests.filtering.pictured import Row, write_rows, write_scores

SCORES = [7.0, 5.0, None, 6.5]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> ShardRows:
    sizes = [(100, 300), (200, 200), (300, 100), (400, 300)]
    dataset = write_rows(
        tmp_path_factory.mktemp("data") / "toys", [Row(f"r{n}", n, size) for n, size in enumerate(sizes)]
    )
    write_scores(dataset, "aesthetic.laion-v2-21dd590f", SCORES)
    write_scores(dataset, "clip.one", SCORES)
    write_scores(dataset, "clip.two", SCORES)
    return ShardRows(dataset, 0)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("aesthetic > 6", [1, 0, 0, 1]),
        ("aesthetic > 6 and ratio < 2", [0, 0, 0, 1]),
        ("not aesthetic > 6", [0, 1, 1, 0]),
        ("aesthetic <= 6 or width == 100", [1, 1, 0, 0]),
        ("100 < width <= 300", [0, 1, 1, 0]),
        ("(width > 100 or height > 200) and not (height == 200)", [1, 0, 1, 1]),
        ("row_id in ('r1', \"r3\")", [0, 1, 0, 1]),
        ("row_id != 'r1'", [1, 0, 1, 1]),
        ("aesthetic.laion-v2-21dd590f:score >= 6.5", [1, 0, 0, 1]),
        ("clip.one > 6", [1, 0, 0, 1]),
        ("pixels >= 4e4 and side != 100", [0, 1, 0, 1]),
        ("aesthetic != 5", [1, 0, 0, 1]),  # a missing value meets no comparison
    ],
)
def test_a_condition_means_what_it_says(rows: ShardRows, condition: str, expected: list[int]) -> None:
    assert parse_condition(condition).mask(rows).tolist() == [bool(one) for one in expected]


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "width",
        "width >",
        "width > 3 3",
        "(width > 3",
        "width > 3)",
        "width = 3",
        "width > 3 and",
        "__import__('os').system('true')",
        "width > (3)",
        "width.__class__ > [1]",
        "width > 3; drop",
        "width in 3",
        "not " * 100 + "width > 3",
        "width > 1 or " * 1000 + "width > 1",
    ],
)
def test_what_the_grammar_does_not_know_is_refused(condition: str) -> None:
    with pytest.raises(ConfigurationError, match="condition"):
        parse_condition(condition)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("widht > 3", "did you mean 'width'"),
        ("clip > 3", "clip.one or clip.two"),
        ("clip.one:text > 3", "no column 'text'"),
        ("width > 'wide'", "a text with a number"),
        ("3 > 2", "two constants"),
    ],
)
def test_a_name_or_comparison_that_cannot_be_meant_is_refused(rows: ShardRows, condition: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_condition(condition).mask(rows)


def test_names_are_found_wherever_they_stand() -> None:
    assert set(names_in(parse_condition("a > 1 and (not b < c or d in (e, 3))"))) == {"a", "b", "c", "d", "e"}


def test_text_keeps_its_words(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("and"), Row("b", 1)])
    assert parse_condition("row_id == 'and'").mask(ShardRows(dataset, 0)).tolist() == [True, False]
