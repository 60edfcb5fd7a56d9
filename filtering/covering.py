"""Which hashes of 64 bits have another within a distance, without comparing every two of them.

Bits that two near hashes share are looked for by masks: under some mask any two within the distance are equal, so each
mask needs one sorting and a look at neighbours. The masks of some bits for a radius r (Pagh, "Locality-sensitive
Hashing without False Negatives", SODA 2016): give every bit a vector of r + 1 binary digits; for each of the
2^(r+1) - 1 vectors v that are not zero, a mask holds the bits whose vector has an odd product with v. The vectors of r
differing bits or fewer do not span the space, so some v is at right angles to all of them, and its mask holds none of
those bits.

Of two hashes that differ in at most d of 64 bits, cut into s spans, some span differs in at most d / s, and all but
some span in at most d - d / s. The fewer bits are looked at together, the fewer masks they have, and the more often
random hashes meet under one: of all bits 2047 masks at d = 10, under each of which two meet once in about 2^32; of
halves 94 and 2^16. What costs so many hashes the least is taken, so the time grows a little faster than the rows.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

BITS = 64
WAYS = ((1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 3))
"""Spans, and how many of them are looked at together: one, or all but one."""
DIGITS = 12  # most of a bit's vector: 4,095 masks
SORTING = 5.0  # what sorting costs a hash, in looks at a pair
RUN = 64  # hashes that are equal under a mask and compared, each with as many behind it; of more all are taken for near
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, its digits without a pattern (2^64 by the golden ratio)
_HALF = np.uint64(32)


def near_another(hashes: Hashes, shapes: NDArray[np.float32], distance: int, widest: np.float32) -> Mask:
    """Rows that have another within `distance` bits whose shape differs by at most `widest` [rows].

    A row that has none may be among them, where very many hashes share half of their bits; one that has is never
    missing. About 60 bytes a row.
    """
    found = np.zeros(len(hashes), bool)
    numbers = np.arange(len(hashes), dtype=np.uint32)
    chosen = cheapest(len(hashes), distance)
    run = max(RUN, 4 * max(len(hashes) >> mask.bit_count() for mask in chosen))
    for mask in chosen:
        keys = hashes & np.uint64(mask)
        keys *= _MIX  # equal bits give equal upper halves; unequal ones nearly never do
        keys >>= _HALF
        keys <<= _HALF
        keys |= numbers
        keys.sort()
        rows = (keys & np.uint64(0xFFFFFFFF)).view(np.int64)
        keys >>= _HALF
        _look(found, keys, rows, hashes[rows], shapes, distance, widest, run)
    return found


def _look(
    found: Mask,
    keys: Hashes,
    rows: NDArray[np.int64],
    hashes: Hashes,
    shapes: NDArray[np.float32],
    distance: int,
    widest: np.float32,
    run: int,
) -> None:
    """Mark in `found` the `rows` near to another of their key; keys, rows and hashes are in the order of the keys."""
    if not len(keys):
        return
    same = keys[1:] == keys[:-1]
    begins = np.flatnonzero(np.concatenate(([True], ~same)))
    worth = np.logical_or.reduceat(
        ~found[rows], begins
    )  # of a key all of whose rows are found nothing is left to learn
    at = np.flatnonzero(same & np.repeat(worth, np.diff(begins, append=len(keys)))[:-1])
    for step in range(1, run + 1):
        near = at[np.bitwise_count(hashes[at] ^ hashes[at + step]) <= distance]
        one, other = rows[near], rows[near + step]
        fits = np.abs(shapes[one] - shapes[other]) <= widest
        found[one[fits]] = found[other[fits]] = True
        at = at[at + step + 1 < len(keys)]
        at = at[keys[at] == keys[at + step + 1]]
        if not len(at):
            return
    # whoever is not marked here stands within `run` places of all of its key, and has been compared with each
    found[rows[at]] = found[rows[at + run + 1]] = True


def cheapest(hashes: int, distance: int) -> tuple[int, ...]:
    """The masks that cost so many hashes the least."""
    return min((masks(distance, *way) for way in possible(distance)), key=lambda chosen: cost(hashes, chosen))


def possible(distance: int) -> list[tuple[int, int]]:
    """Ways to look for hashes within this distance whose masks are not too many."""
    return [
        (spans, together)
        for spans, together in WAYS
        if spans <= distance + 1 and -(-(distance + 1) * together // spans) <= DIGITS
    ]


def cost(hashes: int, chosen: Sequence[int]) -> float:
    """What looking under these masks costs, in looks at a pair; random hashes are assumed."""
    return sum(hashes * (SORTING + hashes / (2 << mask.bit_count())) for mask in chosen)


@cache
def masks(distance: int, spans: int, together: int) -> tuple[int, ...]:
    """Masks of 64 bits under one of which any two hashes within `distance` are equal."""
    borders = [BITS * one // spans for one in range(spans + 1)]
    parts = [list(range(begin, end)) for begin, end in pairwise(borders)]
    if together == 1:  # the radii are such that each of them plus one, added up, is the distance plus one
        share, more = divmod(distance + 1, spans)
        found = [_covering(bits, share + (number < more)) for number, bits in enumerate(parts)]
    else:
        rest = [[bit for bits in parts if bits is not left for bit in bits] for left in parts]
        found = [_covering(bits, distance * together // spans + 1) for bits in rest]
    return tuple(mask for some in found for mask in some)


def _covering(bits: Sequence[int], digits: int) -> list[int]:
    """The masks of these bits for the radius `digits` - 1.

    A bit's vector is 1, then the digits of a number of its own, then random ones: with the first two alone every mask
    but one holds about half of the bits (a Reed-Muller code of the first order, or a random part of one).
    """
    most, draw = (len(bits) - 1).bit_length(), np.random.default_rng(0)
    places = draw.permutation(1 << most)[: len(bits)]
    known = [np.ones_like(places), *(places >> digit & 1 for digit in range(most))]
    random = [draw.permutation(len(places)) % 2 for _ in range(max(0, digits - len(known)))]
    vectors = np.array([*known, *random][:digits])  # [digits, bits]
    chosen = np.arange(1, 1 << digits)[:, None] >> np.arange(digits) & 1  # [masks, digits]
    return [sum(1 << bits[at] for at in np.flatnonzero(held).tolist()) for held in chosen @ vectors & 1]
