"""Which rows of a block share a micro-batch, where how a stage is executed lets their lengths say it.

A block's loss is a sum over its rows, so their order among its micro-batches changes nothing but the last bits.
"""

from collections.abc import Sequence


def alike(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """The rows in `parts` groups of equal size within one row, each of near lengths: little is padded in any."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start:end] for start, end in _bounds(len(lengths), parts)]


def balanced(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """The rows in `parts` groups of equal size within one row, of about equally many tokens each.

    The longest row that is left goes to the group with the fewest tokens among those that have room.
    """
    groups: list[list[int]] = [[] for _ in range(parts)]
    room = [end - start for start, end in _bounds(len(lengths), parts)]
    tokens = [0] * parts
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        part = min((part for part in range(parts) if room[part]), key=tokens.__getitem__)
        groups[part].append(row)
        room[part] -= 1
        tokens[part] += lengths[row]
    return groups


def _bounds(rows: int, parts: int) -> list[tuple[int, int]]:
    return [(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]
