"""The rules by which recorded cases make up a score for each prompt, such as "c=(7i+3)%3, r=2 if i<=400 else 0".

`i` is the prompt's number. A rule names the scores that it sets, several at once with "c=r=a=2"; without a name it
sets all; a score that no part sets is 0, as is one whose condition has no "else". Only arithmetic and comparisons are
understood.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipelines.errors import HarmonError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NAMES = re.compile(r"\s*((?:[a-z]\s*=(?!=)\s*)+)")
_REMARK = re.compile(r",?\s*\bids?\b[^=]*$")  # which ids are missing is recorded apart


@dataclass(frozen=True)
class Rule:
    """An expression for each score."""

    scores: dict[str, ast.expr]

    @classmethod
    def of(cls, text: str, names: Sequence[str]) -> "Rule":
        """The rule `text` for scores with these `names`; raises HarmonError where it is not understood."""
        scores: dict[str, ast.expr] = {}
        for part in re.split(r",(?![^(]*\))", _REMARK.sub("", text)):
            named = _NAMES.match(part)
            set_here = re.findall("[a-z]", named[1]) if named else list(names)
            if unknown := set(set_here) - set(names):
                raise HarmonError(f"the rule {text!r} sets {sorted(unknown)[0]!r}; scores are {', '.join(names)}.")
            expression = _parsed(part[named.end() :] if named else part)
            scores |= dict.fromkeys(set_here, expression)
        return cls(scores)

    def value(self, name: str, i: int) -> float:
        """Score `name` of prompt `i`."""
        return float(_value(self.scores[name], i)) if name in self.scores else 0.0


def _parsed(text: str) -> ast.expr:
    product = re.sub(r"(\d)\s*(?=i\b|\()", r"\1*", text.strip())
    whole = f"{product} else 0" if " if " in product and " else " not in product else product
    try:
        return ast.parse(whole, mode="eval").body
    except SyntaxError as error:
        raise HarmonError(f"the rule {text!r} is not understood ({error.msg}); write arithmetic over i.") from error


def _value(node: ast.expr, i: int) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id="i"):
            return i
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left, i), _value(right, i))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, i)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, i) else orelse, i)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, i) for value in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_value(value, i) for value in values)
        case ast.Compare(left=left, ops=signs, comparators=rights) if all(type(sign) in _COMPARE for sign in signs):
            values = [_value(one, i) for one in (left, *rights)]
            return all(_COMPARE[type(sign)](*pair) for sign, pair in zip(signs, pairwise(values)))
    raise HarmonError(f"the rule's part {ast.unparse(node)!r} is not understood; write arithmetic over i.")
