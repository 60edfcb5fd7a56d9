"""Headers of ustar archives as our shards have them: regular files, one form for equal members."""

import re
import struct
from typing import NamedTuple
from zlib import adler32

import numpy as np
from numpy.typing import NDArray

BLOCK = 512  # POSIX.1-1988 (ustar): headers and data are padded to blocks of 512 bytes
END = bytes(2 * BLOCK)  # two zero blocks end an archive
MAX_MEMBER = 8**11 - 1  # largest size that the 11 octal digits of a ustar header hold, in bytes
MAX_VIEW = 16 << 20  # bytes of a sample's JSON view, which readers hold at once; captions have thousands

HEADER = re.compile(rb"(?s)(?=([0-9a-f]{32})\.([a-z0-9]{1,8})\0).{124}([0-7]{11})\0.{121}ustar\0.{249}")
"""A member's header: key, extension and the octal size of its data, at their places in the 512 bytes."""


class Member(NamedTuple):
    """What a member's header says: key, extension, size of its data in bytes."""

    key: str
    extension: str
    size: int


def _template() -> bytes:
    """A ustar header without name, size and checksum: a regular file, mode 0644, owner 0, time 0."""
    return struct.pack(
        "100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x",
        b"",
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        b"",
        b"00000000000\0",
        b" " * 8,
        b"0",
        b"",
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"0000000\0",
        b"0000000\0",
        b"",
    )


TEMPLATE = _template()
TEMPLATE_SUM = sum(TEMPLATE)
MODE, TIME, LINK = TEMPLATE[100:124], TEMPLATE[136:148], TEMPLATE[156:]


def header(key: str, extension: str, size: int) -> bytes:
    """The header of a member; equal samples give equal bytes."""
    return _header(f"{key}.{extension}".encode(), b"%011o" % size)


def _header(name: bytes, digits: bytes) -> bytes:
    """A header's checksum is the sum of all its bytes, the checksum's own eight taken as spaces."""
    filled = adler32(name + digits) & 0xFFFF  # 1 + the sum of the bytes, which are far too few to reach its modulus
    checksum = b"%06o\0 " % (TEMPLATE_SUM + filled - 1)
    return b"".join((name.ljust(100, b"\0"), MODE, digits, b"\0", TIME, checksum, LINK))


def member(block: bytes) -> Member | None:
    """The member that a header describes, or None if it is not, byte for byte, one that `header` makes."""
    match = HEADER.fullmatch(block)
    if match is None:
        return None
    key, extension, digits = match.groups()
    if _header(b"%b.%b" % (key, extension), digits) != block:
        return None
    return Member(key.decode(), extension.decode(), int(digits, 8))


def members(blocks: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64], NDArray[np.bool_]]:
    """What `member` says of many headers [N, 512] at once: keys, sizes of the data in bytes, and which of them are
    headers that `header` makes; of the others key and size mean nothing."""
    letters, after = _IN_EXTENSION[blocks[:, 33:41]], blocks[:, 33:100] == 0
    named = _IN_KEY[blocks[:, :32]].all(axis=1) & (blocks[:, 32] == ord("."))
    named &= letters[:, 0] & (letters[:, :-1] | ~letters[:, 1:]).all(axis=1)
    named &= letters.sum(axis=1) + after.sum(axis=1) == after.shape[1]
    digits = blocks[:, 124:135] - np.uint8(ord("0"))  # what is none wraps above 7
    fixed = blocks[:, _FIXED_AT] == np.frombuffer(TEMPLATE, np.uint8)[_FIXED_AT]
    total = TEMPLATE_SUM + blocks[:, :100].sum(axis=1, dtype=np.int64) + blocks[:, 124:135].sum(axis=1, dtype=np.int64)
    summed = (total[:, None] >> _PLACES[-6:] & 7) + ord("0") == blocks[:, 148:154]
    ended = (blocks[:, 154] == 0) & (blocks[:, 155] == ord(" "))
    sound = named & (digits < 8).all(axis=1) & fixed.all(axis=1) & summed.all(axis=1) & ended
    text = np.where(sound[:, None], blocks[:, :32], ord("0")).astype(np.uint8).tobytes().decode("ascii")
    keys = [text[at : at + 32] for at in range(0, len(text), 32)]
    return keys, (digits.astype(np.int64) << _PLACES).sum(axis=1), sound


_PLACES = np.arange(30, -1, -3)  # of eleven octal digits, in bits
_FIXED_AT = np.r_[100:124, 135:148, 156:BLOCK]  # all but name, size and checksum
_IN_KEY = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdef", np.uint8))
_IN_EXTENSION = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyz", np.uint8))


def padding(size: int) -> int:
    """Bytes that fill the last block of so many."""
    return -size % BLOCK
