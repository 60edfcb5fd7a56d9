"""Reads conditions by a parser of their own: nothing is ever evaluated as code.

condition  = and_part {"or" and_part}             and_part = part {"and" part}
part       = "not" part | "(" condition ")" | comparison
comparison = operand {("<" | "<=" | ">" | ">=" | "==" | "!=") operand} | operand "in" "(" literal {"," literal} ")"
operand    = number | 'text' | name
"""

import re
from collections.abc import Iterator

from filtering.expression import COMPARE, Comparison, Condition, Joined, Name, Operand
from pipelines.errors import ConfigurationError

LONGEST = 4000  # characters of a condition
DEEPEST = 40  # parentheses and `not` within each other
TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|-?\.\d+)|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.:-]*)|(?P<sign><=|>=|==|!=|<|>|\(|\)|,))"
)


def parse_condition(text: str) -> Condition:
    """The condition that `text` states.

    Raises ConfigurationError, with the place, for anything the grammar does not know.
    """
    if len(text) > LONGEST:
        raise ConfigurationError(f"The condition has {len(text)} characters; at most {LONGEST} are read.")
    return _Parser(text).whole()


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
