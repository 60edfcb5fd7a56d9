"""JSON records as a stream: an array of any length, or JSON lines, one record in memory at a time.

The array is read with the standard library's own scanner over a buffer that holds whole records. That gives each
record's place in the file, so that reading can go on from there, which ijson does not, at about 0.85 of its speed.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import HarmonError

PIECE = 1 << 20  # bytes read at a time
MAX_RECORD = 16 << 20  # bytes of one record; a larger one is no record of any dataset, but an attack or damage
BETWEEN = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True, slots=True)
class Found:
    """One record and where it stands."""

    offset: int
    """Of its first byte in the file."""
    size: int
    """Bytes."""
    value: dict[str, Any]
    problem: str | None = None
    """Why it is no record, where it is none."""


def read_records(path: Path, offset: int = 0) -> Iterator[Found]:
    """The records of a .json array or a .jsonl file, from the one at `offset` on (0: from the first).

    A line that is no JSON object, or an element of an array that is none, comes with its problem.

    Raises HarmonError where the file cannot be read, or where an array is damaged: nothing behind the damage
    could be told apart.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            lines = path.suffix != ".json"
            yield from _lines(stream, offset) if lines else _array(stream, offset, path)
    except OSError as error:
        raise HarmonError(f"{path} cannot be read: {error.strerror}") from None


def read_record(stream: BinaryIO, offset: int, size: int) -> dict[str, Any]:
    """One record again, by the place that `read_records` told."""
    stream.seek(offset)
    value: dict[str, Any] = json.loads(stream.read(size))
    return value


def _lines(stream: BinaryIO, offset: int) -> Iterator[Found]:
    while line := stream.readline(MAX_RECORD + 1):
        size, problem, value = len(line), None, {}
        if size > MAX_RECORD:
            while not line.endswith(b"\n") and (rest := stream.readline(MAX_RECORD)):
                size, line = size + len(rest), rest
            problem = f"a line of more than {MAX_RECORD} bytes"
        elif not (text := line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line).strip():
            offset += size
            continue
        else:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                problem = f"no JSON: {str(error)[:120]}"
            if problem is None and not isinstance(value, dict):
                value, problem = {}, f"{type(value).__name__}, not an object"
        yield Found(offset, size, value, problem)
        offset += size


def _array(stream: BinaryIO, offset: int, path: Path) -> Iterator[Found]:
    decoder, scan = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
    text, at, ended = "", 0, False  # the buffer, and the place in it

    def more() -> bool:
        """Drop what is read and take the next piece; false at the end of the file."""
        nonlocal text, at, ended
        piece = b"" if ended else stream.read(max(PIECE, len(text) - at))
        ended = not piece
        try:
            text, at = text[at:] + decoder.decode(piece, ended), 0
        except UnicodeDecodeError:
            raise HarmonError(f"{path} is not UTF-8 near byte {offset}; fetch it anew") from None
        return not ended

    if offset == 0:
        more()
        if text.startswith("\ufeff"):
            text, offset = text[1:], 3
        start = len(text) - len(text.lstrip())
        if text[start : start + 1] != "[":
            seen = repr(text[start : start + 20]) if text.strip() else "nothing"
            raise HarmonError(f"{path} is no JSON array: it begins with {seen}; the entry expects a list of records")
        at, offset = start + 1, offset + start + 1
    while True:
        end = BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # the empty string matches
        offset, at = offset + end - at, end  # white space and commas are one byte each
        if at == len(text):
            if not more():
                raise HarmonError(f"{path} ends at byte {offset} before its list is closed: it is cut; fetch it anew")
            continue
        if text[at] == "]":
            return
        try:
            value, end = scan(text, at)
        except (ValueError, RecursionError) as error:
            if not isinstance(error, RecursionError) and len(text) - at < MAX_RECORD and more():
                continue
            raise HarmonError(f"{path} is damaged at byte {offset}: {str(error)[:80]}; fetch it anew") from None
        size = end - at if text.isascii() else len(text[at:end].encode("utf-8", "surrogatepass"))
        if isinstance(value, dict):
            yield Found(offset, size, value)
        else:
            yield Found(offset, size, {}, f"{type(value).__name__}, not an object")
        offset, at = offset + size, end
