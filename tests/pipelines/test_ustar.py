"""Many headers read at once say what each of them says alone."""

import numpy as np
import pytest

from pipelines.ustar import BLOCK, header, member, members

GOOD = [header(f"{number:032x}", ("jpg", "webp", "a")[number % 3], 8**number) for number in range(11)]


def blocks(headers: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)


def test_keys_and_sizes_are_those_of_each() -> None:
    said = members(blocks(GOOD))
    assert said is not None
    keys, sizes = said
    alone = [member(one) for one in GOOD]
    assert [(one.key, one.size) for one in alone if one] == list(zip(keys, sizes.tolist(), strict=True))


def test_no_headers_say_nothing() -> None:
    said = members(blocks([]))
    assert said is not None
    assert len(said[0]) == len(said[1]) == 0


@pytest.mark.parametrize("bit", [1, 128])
def test_one_changed_bit_anywhere_is_told_as_it_is_of_one_header(bit: int) -> None:
    for place in range(BLOCK):
        changed = bytearray(GOOD[3])
        changed[place] ^= bit
        assert (members(blocks([GOOD[0], bytes(changed), GOOD[1]])) is None) == (member(bytes(changed)) is None)
