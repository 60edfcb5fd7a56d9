"""Conditions such as `aesthetic > 6 and ratio < 2`, read by a parser of their own: nothing is ever evaluated as code.

    condition  = and_part {"or" and_part}             and_part = part {"and" part}
    part       = "not" part | "(" condition ")" | comparison
    comparison = operand {("<" | "<=" | ">" | ">=" | "==" | "!=") operand} | operand "in" "(" literal {"," literal} ")"
    operand    = number | 'text' | name

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

LONGEST = 4000  # characters of a condition
DEEPEST = 40  # parentheses and `not` within each other
TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|-?\.\d+)|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.:-]*)|(?P<sign><=|>=|==|!=|<|>|\(|\)|,))"
)
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


def parse_condition(text: str) -> Condition:
    """The condition that `text` states.

    Raises ConfigurationError, with the place, for anything the grammar does not know.
    """
    if len(text) > LONGEST:
        raise ConfigurationError(f"The condition has {len(text)} characters; at most {LONGEST} are read.")
    return _Parser(text).whole()


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


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._read())
        self._at = 0
        self._depth = 0

    def whole(self) -> Condition:
        found = self._either()
        if self._at < len(self._tokens):
            raise self._wrong("expected `and`, `or` or the end")
        return found

    def _either(self) -> Condition:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Joined("or", tuple(parts))

    def _both(self) -> Condition:
        parts = [self._part()]
        while self._take("and"):
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))

    def _part(self) -> Condition:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"more than {DEEPEST} levels")
        try:
            if self._take("not"):
                return Joined("not", (self._part(),))
            if self._take("("):
                inner = self._either()
                if not self._take(")"):
                    raise self._wrong("expected `)`")
                return inner
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        left = self._operand()
        if self._take("in"):
            return Comparison(left, "in", self._listed())
        found: list[Condition] = []
        while self._next() in COMPARE:
            sign = self._next()
            self._at += 1
            right = self._operand()
            found.append(Comparison(left, sign, right))
            left = right
        if not found:
            raise self._wrong("expected a comparison")
        return found[0] if len(found) == 1 else Joined("and", tuple(found))

    def _listed(self) -> tuple[Operand, ...]:
        if not self._take("("):
            raise self._wrong("expected `(` after `in`")
        items = [self._operand()]
        while self._take(","):
            items.append(self._operand())
        if not self._take(")"):
            raise self._wrong("expected `)`")
        return tuple(items)

    def _operand(self) -> Operand:
        if self._at >= len(self._tokens):
            raise self._wrong("expected a name, a number or a text")
        kind, text, _ = self._tokens[self._at]
        if kind == "sign" or text in ("and", "or", "not", "in"):
            raise self._wrong("expected a name, a number or a text")
        self._at += 1
        return float(text) if kind == "number" else text[1:-1] if kind == "text" else Name(text)

    def _next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self, text: str) -> bool:
        taken = self._next() == text and self._tokens[self._at][0] != "text"
        self._at += taken
        return taken

    def _read(self) -> Iterator[tuple[str, str, int]]:
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = TOKEN.match(self._text, at)
            if match is None:
                raise ConfigurationError(
                    f"The condition cannot be read at character {at + 1}: {self._text[at:][:30]!r}."
                )
            kind = match.lastgroup or ""
            yield kind, match[kind], match.start(kind)
            at = match.end()

    def _wrong(self, what: str) -> ConfigurationError:
        place = self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._text)
        return ConfigurationError(f"The condition {self._text!r} is wrong at character {place + 1}: {what}.")


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
