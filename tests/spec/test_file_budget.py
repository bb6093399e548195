from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.spec.file_budget import read_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("700MB", 700_000_000),
        ("700 mb", 700_000_000),
        ("1.5GiB", 1_610_612_736),
        ("512KiB", 524_288),
        ("5.0bpw", 1000 + 625),
        ("5BPW", 1000 + 625),
    ],
)
def test_units(text: str, expected: int) -> None:
    assert read_budget(text).file_bytes(weights=1000, overhead_bytes=1000) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5.0bp", "'bp' is no unit"),
        ("700", "is no budget"),
        ("", "is no budget"),
        ("-5bpw", "is no budget"),
        ("1e3MB", "is no budget"),
        ("0bpw", "above 0"),
        ("33bpw", "at most 32"),
        ("0MB", "no room"),
        ("nanMB", "is no budget"),
        ("٣MB", "is no budget"),
        ("5.0bpw; rm", "is no budget"),
    ],
)
def test_anything_else_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        read_budget(text)
    problem = caught.value.problems[0]
    assert problem.path == "--budget"
    assert "5.0bpw" in problem.hint


@given(st.sampled_from(["bpw", "KB", "MB", "GB", "KiB", "MiB", "GiB"]), st.integers(1_000, 10**12), st.integers(32, 10**12))
def test_a_size_in_words_can_be_asked_for(unit: str, size: int, weights: int) -> None:
    """Whatever minimum a message names, asking for exactly that is enough."""
    overhead = 500
    words = read_budget(f"1{unit}").words_for(size, weights=weights, overhead_bytes=overhead)
    try:
        again = read_budget(words)
    except SpecError:
        assert unit == "bpw"  # more than 32 bits
        assert 8 * size / weights > 31
        return
    assert again.file_bytes(weights=weights, overhead_bytes=overhead) >= size - 1
