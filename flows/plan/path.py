"""The order that steps force on each other, and the longest way through it."""

from collections.abc import Mapping, Sequence


def critical_path(seconds: Mapping[str, float], after: Mapping[str, Sequence[str]]) -> tuple[list[str], float]:
    """The steps of the longest way, first to last, and its seconds; the first found of several that are equal.

    `seconds` are in an order in which each step stands after those that it waits for. Steps that `after` names and
    `seconds` does not, as ones that are done, take no time.
    """
    until: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for name, own in seconds.items():
        last = max((one for one in after.get(name, ()) if one in until), key=lambda one: until[one], default=None)
        before[name] = last
        until[name] = own + (until[last] if last is not None else 0.0)
    if not until:
        return [], 0.0
    end: str | None = max(until, key=lambda one: until[one])
    assert end is not None
    total = until[end]
    way: list[str] = []
    while end is not None:
        way.append(end)
        end = before[end]
    return way[::-1], total
