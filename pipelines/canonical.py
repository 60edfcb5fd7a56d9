"""One way to turn values into bytes and bytes into names: equal things have equal hashes everywhere."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from pipelines.errors import HarmonError

PLAIN = frozenset((str, int, float, bool, type(None)))  # types without anything inside
ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
DECODER = json.JSONDecoder()
EXACT = frozenset((str, int, bool, type(None)))  # types that both encoders write alike: floats they do not


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no whitespace.

    Raises HarmonError for what has no single form: NaN and infinities, keys that are not strings, lone
    surrogates, and objects that JSON does not know. Tuples become lists.
    """
    if type(value) is dict and EXACT.issuperset(map(type, value.values())):  # such as views: many, and flat
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except TypeError:  # integers beyond 64 bits, and what is refused below with its reason
            pass
    _refuse_ambiguous(value, "$")
    try:
        return ENCODER.encode(value).encode()
    except (TypeError, ValueError) as problem:  # UnicodeEncodeError is a ValueError
        raise HarmonError(f"this value has no canonical JSON ({problem}); use plain finite JSON values") from problem


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is, without whitespace around it. Raises ValueError for anything else."""
    text = data.decode()
    try:
        value, end = DECODER.raw_decode(text)  # json.loads also searches for whitespace and other encodings
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem
    if end != len(text) or not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _refuse_ambiguous(value: object, where: str) -> None:
    """Refuse mapping keys that `json.dumps` would turn into strings: 1 and "1" would become one key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise HarmonError(f"{where} has the key {key!r}, which is not a string; canonical JSON needs strings")
            if type(item) not in PLAIN:
                _refuse_ambiguous(item, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for position, item in enumerate(value):
            if type(item) not in PLAIN:
                _refuse_ambiguous(item, f"{where}[{position}]")


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sample_key(source: str, row_id: str) -> str:
    """The 32 hex digits that name a sample everywhere: a pure function of where it came from.

    `source` is the catalogue name without revision, `row_id` the field that the catalogue entry names.
    """
    if not source or "\n" in source:
        raise HarmonError(f"{source!r} cannot name a source: a name is not empty and has no line break")
    return sha256_hex(f"{source}\n{row_id}".encode())[:32]


def keys_sha256(keys: Iterable[str]) -> str:
    """Hash of a shard's ordered keys, each followed by a line feed: groups with equal hashes are aligned."""
    return sha256_hex("\n".join((*keys, "")).encode())
