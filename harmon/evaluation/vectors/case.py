"""One recorded case, and whether what we compute for it is what was recorded.

A case is a JSON object: what went into a scorer and, under other names, what came out of it. A `Replay` says which
names are inputs and computes the rest; a recorded name that it does not compute fails the case, so nothing recorded
goes unchecked.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import HarmonError

TOLERANCE = 1e-6
Case = Mapping[str, Any]


@dataclass(frozen=True)
class Replay:
    """How the cases of one group are computed: `compute` returns values by recorded name; `inputs` are names of what
    goes in or only describes; numbers agree within `tolerance`, absolute."""

    inputs: frozenset[str]
    compute: Callable[[Case], Mapping[str, Any]]
    tolerance: float = TOLERANCE


def replayed(*inputs: str, tolerance: float = TOLERANCE) -> Callable[[Callable[[Case], Mapping[str, Any]]], Replay]:
    """Decorator that makes a computing function a Replay of cases with these `inputs`."""
    return lambda compute: Replay(frozenset(inputs), compute, tolerance)


def failure(replay: Replay, case: Case) -> str | None:
    """In what `case` fails, None where it passes."""
    recorded = {name: value for name, value in case.items() if name not in replay.inputs}
    if not recorded:
        return "it records no output"
    try:
        computed = replay.compute(case)
    except (HarmonError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    for name, value in recorded.items():
        if name not in computed:
            return f"nothing here computes {name!r}"
        if not same(value, computed[name], replay.tolerance):
            return f"{name} is {computed[name]!r}, recorded {value!r}"
    return None


def same(recorded: Any, computed: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two JSON values are equal, numbers within `tolerance` and bools only to bools."""
    if isinstance(recorded, Mapping):
        return (
            isinstance(computed, Mapping)
            and set(recorded) == set(computed)
            and all(same(recorded[key], computed[key], tolerance) for key in recorded)
        )
    if isinstance(recorded, list):
        return (
            isinstance(computed, list)
            and len(recorded) == len(computed)
            and all(same(one, other, tolerance) for one, other in zip(recorded, computed))
        )
    if isinstance(recorded, bool) or isinstance(computed, bool):
        return isinstance(recorded, bool) and isinstance(computed, bool) and recorded == computed
    if isinstance(recorded, int | float) and isinstance(computed, int | float):
        return recorded == computed or bool(
            abs(recorded - computed) <= tolerance or (math.isnan(recorded) and math.isnan(computed))
        )
    return type(recorded) is type(computed) and bool(recorded == computed)
