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


def size_of(block: bytes, key: str, extension: str) -> int | None:
    """The size that a header says, or None if it is not, byte for byte, the one that `header` makes for this name.

    Cheaper than `member`, for a reader who knows what comes.
    """
    digits = block[124:135]
    if digits.translate(None, b"01234567") or _header(f"{key}.{extension}".encode(), digits) != block:
        return None
    return int(digits, 8)


def members(blocks: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]] | None:
    """Keys, and sizes of the data in bytes, of many headers [N, 512] at once, as `member` says them of each; None where
    it says None of any."""
    count, digits = len(blocks), blocks[:, 124:135]
    names, ends = blocks[:, :32].tobytes(), blocks[:, 32:100].tobytes()
    fixed = ((100, MODE), (135, b"\0" + TIME), (154, b"\0 " + LINK))
    if any(blocks[:, at : at + len(wanted)].tobytes() != wanted * count for at, wanted in fixed):
        return None
    different = {ends[at : at + 68] for at in range(0, len(ends), 68)}
    if names.translate(None, b"0123456789abcdef") or not all(_EXTENSION.fullmatch(end) for end in different):
        return None
    octal = digits - np.uint8(ord("0"))  # what is no digit wraps above 7
    sums = TEMPLATE_SUM + blocks[:, :100].sum(axis=1, dtype=np.int64) + digits.sum(axis=1, dtype=np.int64)
    told = blocks[:, 148:154] == (sums[:, None] >> _PLACES[-6:] & 7) + ord("0")
    if octal.max(initial=0) > 7 or not told.all():
        return None
    text = names.decode("ascii")
    return [text[at : at + 32] for at in range(0, len(text), 32)], (octal.astype(np.int64) << _PLACES).sum(axis=1)


_PLACES = np.arange(30, -1, -3)  # of eleven octal digits, in bits
_EXTENSION = re.compile(rb"\.[a-z0-9]{1,8}\0+")  # with what fills the name's 100 bytes


def padding(size: int) -> int:
    """Bytes that fill the last block of so many."""
    return -size % BLOCK
