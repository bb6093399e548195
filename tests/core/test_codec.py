import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.codec import decode, digest, encode_canonical, encode_pretty, text_digest
from fewbits.core.errors import StoreError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_decoding_undoes_encoding(value: object) -> None:
    assert msgspec.json.decode(encode_canonical(value)) == value
    assert msgspec.json.decode(encode_pretty(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_key_order_does_not_change_bytes(value: dict[str, int]) -> None:
    assert encode_canonical(dict(reversed(value.items()))) == encode_canonical(value)
    assert digest(dict(reversed(value.items()))) == digest(value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_refused_with_their_place(bad: float) -> None:
    with pytest.raises(ValueError, match=r"\$\.rows\[1\]\.x"):
        encode_canonical({"rows": [{"x": 1.0}, {"x": bad}]})


def test_decoding_names_the_file_and_the_path() -> None:
    class Row(msgspec.Struct):
        count: int

    with pytest.raises(StoreError, match=r"rows\.json: .*count"):
        decode(b'{"count": "three"}', Row, "rows.json")


def test_text_digest_accepts_lone_surrogates() -> None:
    assert len(text_digest("\ud800")) == 64
