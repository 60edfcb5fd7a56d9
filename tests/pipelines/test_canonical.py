"""Equal values have equal bytes, and nothing ambiguous gets bytes at all."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.canonical import ENCODER, canonical_json, keys_sha256, sample_key
from pipelines.errors import HarmonError

WORDS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_values_survive_the_round_trip(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(WORDS, st.integers(), min_size=2))
def test_order_of_insertion_does_not_show(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(st.dictionaries(WORDS, st.none() | st.booleans() | st.integers() | WORDS))
def test_flat_objects_have_the_bytes_of_the_plain_encoder(value: dict[str, object]) -> None:
    assert canonical_json(value) == ENCODER.encode(value).encode()


@pytest.mark.parametrize(
    "value",
    [float("nan"), [float("inf")], {1: 2}, {"a": {None: 1}}, {"a": "\ud800"}, {"\ud800": 1}, "\ud800", b"x", {1}],
)
def test_what_has_no_single_form_is_refused(value: object) -> None:
    with pytest.raises(HarmonError):
        canonical_json(value)


def test_sample_key_is_the_first_half_of_a_sha256() -> None:
    assert sample_key("laion", "7") == hashlib.sha256(b"laion\n7").hexdigest()[:32]


@pytest.mark.parametrize("source", ["", "two\nlines"])
def test_a_source_that_could_collide_is_refused(source: str) -> None:
    with pytest.raises(HarmonError, match="source"):
        sample_key(source, "7")


def test_order_of_keys_changes_their_hash() -> None:
    assert keys_sha256(["a", "b"]) != keys_sha256(["b", "a"])
