"""Conditions such as `aesthetic > 6 and ratio < 2`, judged row by row: what filtering.grammar reads.

A name is a word below WORDS, a column of `source`, a column group (the part before its first dot is enough where one
group begins so), or GROUP:COLUMN. A comparison with a missing value is false, whatever it compares; of a row of text,
which has no size and no score, it says nothing, and such a row stays unless the rest of the condition is false of it.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filtering.rows import Mask, ShardRows
from pipelines.columns import SOURCE_SCHEMA
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE
from pipelines.settings import nearest

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
WORDS: dict[str, Callable[[ShardRows], NDArray[Any]]] = {
    "ratio": lambda rows: np.maximum(_size(rows, 0), _size(rows, 1)) / np.minimum(_size(rows, 0), _size(rows, 1)),
    "side": lambda rows: np.minimum(_size(rows, 0), _size(rows, 1)),
    "pixels": lambda rows: _size(rows, 0) * _size(rows, 1),
    "caption_length": lambda rows: np.where(_without_caption(rows), np.nan, rows.lengths(SOURCE, "caption")),
}
"""Measures made from columns: longer by shorter side, shorter side, area in pixels, characters of the caption."""
Truth = tuple[Mask, Mask]
"""For each row whether something is so, and whether that is known."""


@dataclass(frozen=True)
class Name:
    """A column, or a word made from columns."""

    text: str

    def place(self, rows: ShardRows) -> tuple[str, str] | None:
        """Group and column; None for a word, and for a column that a shard of text does not have."""
        if self.text in WORDS:
            return None
        try:
            return resolve(rows, self.text)
        except ConfigurationError:
            if rows.pictures.any():
                raise
            return None

    def values(self, rows: ShardRows) -> NDArray[Any] | None:
        """float64 with NaN, or objects (str or None), [rows]. None for a column that a shard of text does not have."""
        if self.text in WORDS:
            with np.errstate(divide="ignore", invalid="ignore"):
                return WORDS[self.text](rows)
        if (place := self.place(rows)) is None:
            return None
        group, column = place
        kind = str(rows.column(group, column).type)
        if kind in ("string", "large_string"):
            return np.array(rows.values(group, column), dtype=object)
        return rows.numbers(group, column)

    def numbers(self, rows: ShardRows) -> NDArray[np.float64]:
        """The values of a numeric column, NaN where there is none. Raises ConfigurationError for a text."""
        found = self.values(rows)
        if found is None:
            return np.full(len(rows), np.nan)
        if found.dtype == object:
            raise ConfigurationError(f"'{self.text}' holds texts; a number is needed to know the better row by.")
        return found.astype(np.float64)


Operand = float | str | Name


@dataclass(frozen=True)
class Comparison:
    """`left sign right`; `in` compares with each of several."""

    left: Operand
    sign: str
    right: Operand | tuple[Operand, ...]

    def mask(self, rows: ShardRows) -> Mask:
        """Rows that meet it."""
        return _met(self.truth(rows))

    def truth(self, rows: ShardRows) -> Truth:
        """A missing value makes it false of a picture, and unknown of a text."""
        found, there = np.zeros(len(rows), bool), np.ones(len(rows), bool)
        for one in self.right if isinstance(self.right, tuple) else (self.right,):
            sign = "==" if isinstance(self.right, tuple) else self.sign
            met, known = _compared(self.left, sign, one, rows)
            found |= met
            there &= known
        return found, there | found | rows.pictures


@dataclass(frozen=True)
class Joined:
    """`and`, `or` and `not` of conditions."""

    word: str
    parts: tuple["Condition", ...]

    def mask(self, rows: ShardRows) -> Mask:
        """Rows that meet it."""
        return _met(self.truth(rows))

    def truth(self, rows: ShardRows) -> Truth:
        """`and` is known to be false where one part is, `or` to be true."""
        (found, known), *others = (part.truth(rows) for part in self.parts)
        if self.word == "not":
            return ~found & known, known
        for met, told in others:
            decided = (known & ~found | told & ~met) if self.word == "and" else (found | met)
            known = known & told | decided
            found = found & met if self.word == "and" else found | met
        return found, known


Condition = Comparison | Joined


def names_in(condition: Condition) -> Iterator[str]:
    """Every name that a condition mentions."""
    if isinstance(condition, Joined):
        for part in condition.parts:
            yield from names_in(part)
        return
    right = condition.right if isinstance(condition.right, tuple) else (condition.right,)
    yield from (one.text for one in (condition.left, *right) if isinstance(one, Name))


def resolve(rows: ShardRows, name: str) -> tuple[str, str]:
    """Group and column that a name means in the dataset of `rows`.

    Raises ConfigurationError where it means none or several.
    """
    if name in SOURCE_SCHEMA.names:
        return SOURCE, name
    schemas = rows.head.schemas
    asked, _, column = name.partition(":")
    groups = [group for group in schemas if group == asked or (group.startswith(asked + ".") and rows.has(group))]
    groups = [asked] if asked in groups else groups
    if len(groups) != 1:
        known = sorted([*WORDS, *SOURCE_SCHEMA.names, *(group for group in schemas if rows.has(group))])
        several = f"it may be {' or '.join(sorted(groups))}" if groups else nearest(asked, known)
        raise ConfigurationError(f"'{name}' names no column of {rows.dataset.root}; {several}.")
    if column:
        return groups[0], column
    numeric = [c for c, kind in schemas[groups[0]].items() if re.fullmatch(r"u?int\d+|float|double|halffloat", kind)]
    usual = dict.fromkeys(("score", groups[0].partition(".")[0]))
    likely = [c for c in usual if c in numeric] or numeric
    if len(likely) != 1:
        raise ConfigurationError(
            f"'{name}' has several columns; write {groups[0]}:COLUMN with one of {', '.join(schemas[groups[0]])}."
        )
    return groups[0], likely[0]


def _size(rows: ShardRows, side: int) -> NDArray[np.float64]:
    return rows.numbers(SOURCE, ("width", "height")[side])


def _without_caption(rows: ShardRows) -> Mask:
    missing: Mask = ~rows.pictures & np.asarray(rows.column(SOURCE, "caption").is_null(), dtype=bool)
    return missing


def _met(truth: Truth) -> Mask:
    found, known = truth
    return found | ~known


def _compared(left: Operand, sign: str, right: Operand, rows: ShardRows) -> Truth:
    """For each row whether the comparison holds, and whether both sides are there."""
    if not isinstance(left, Name) and not isinstance(right, Name):
        raise ConfigurationError("A condition compares a column with something; this one compares two constants.")
    sides = [_values(left, right, rows), _values(right, left, rows)]
    nowhere = np.zeros(len(rows), bool)
    if sides[0] is None or sides[1] is None:
        return nowhere, nowhere
    texts = {isinstance(side, str) or (isinstance(side, np.ndarray) and side.dtype == object) for side in sides}
    if len(texts) > 1:
        raise ConfigurationError(f"A condition compares a text with a number (with `{sign}`); write both as one kind.")
    there = np.ones(len(rows), bool)
    for side in (side for side in sides if isinstance(side, np.ndarray)):
        there &= np.array([v is not None for v in side], dtype=bool) if texts == {True} else ~np.isnan(side)
    pick: Sequence[Any] = [side[there] if isinstance(side, np.ndarray) else side for side in sides]
    nowhere[there] = np.asarray(COMPARE[sign](*pick), dtype=bool)
    return nowhere, there


def _values(side: Operand, other: Operand, rows: ShardRows) -> Any:
    """The values of a column, None where it has none; a number as the column can hold it that it is compared with, so
    that a score of 0.1 equals 0.1."""
    if isinstance(side, Name):
        return side.values(rows)
    if isinstance(side, str) or not isinstance(other, Name) or (place := other.place(rows)) is None:
        return side
    return rows.rounding(*place)(side)
