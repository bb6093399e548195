"""Printed numbers and ranges, by the rules that the module states."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.values import Number, Span, parse_number, parse_range, ranges_by_sex, span_of
from fewbits.records.extraction import ReferenceRange, Sex


@pytest.mark.parametrize(
    ("text", "value", "comparator"),
    [
        ("13.5", 13.5, ""),
        ("13,5", 13.5, ""),
        ("1,234.5", 1234.5, ""),
        ("1.234,5", 1234.5, ""),
        ("1,234", 1234, ""),
        ("12,345,678", 12345678, ""),
        ("1.234.567", 1234567, ""),
        ("0,125", 0.125, ""),
        ("1.020", 1.02, ""),
        ("4 500", 4500, ""),
        ("1,50,000", 150000, ""),
        ("1'234", 1234, ""),
        ("-3", -3, ""),
        ("\u22123.5", -3.5, ""),
        ("1.2e3", 1200, ""),
        ("<0.1", 0.1, "<"),
        ("< 0.1", 0.1, "<"),
        ("≤ 5", 5, "<="),
        (">= 90", 90, ">="),
        ("≥90", 90, ">="),
        (">90", 90, ">"),
        ("1.2 H", 1.2, ""),
        ("H 1.2", 1.2, ""),
        ("1.2 (H)", 1.2, ""),
        ("*2.1", 2.1, ""),
        ("7.0*", 7.0, ""),
        ("7.0 HH", 7.0, ""),
        ("<0.01 L", 0.01, "<"),
        ("12.1 ↑", 12.1, ""),
    ],
)
def test_numbers(text: str, value: float, comparator: str) -> None:
    assert parse_number(text) == Number(value, comparator)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Negative",
        "1+",
        "+",
        "++",
        "3-5",
        "1.2.3",
        "1,23,4",
        "12,34.5",
        "5.",
        ".5.",
        "H",
        "1.2 mg",
        "13/05/2024",
        "NaN",
        "inf",
        "1e999",
    ],
)
def test_what_is_no_single_number(text: str) -> None:
    assert parse_number(text) is None


@given(st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3)))
def test_printed_numbers_are_read_back(value: float) -> None:
    assert parse_number(f"{value:.3f}") == Number(value)
    assert parse_number(f"{value:,.3f}") == Number(value)


@given(st.text(max_size=30))
def test_nothing_raises(text: str) -> None:
    parse_number(text)
    span_of(text)
    parse_range(text)
    parse_range(text, sex=Sex.MALE)
    ranges_by_sex(text)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("5", Span(5, 5)),
        ("<5", Span(0, 5, low_closed=True, high_closed=False)),
        ("<-5", Span(-math.inf, -5, low_closed=False, high_closed=False)),
        (">=90", Span(90, math.inf, low_closed=True, high_closed=False)),
        ("0-2", Span(0, 2)),
        ("3 \u2013 5", Span(3, 5)),
        ("5-3", None),
        ("Trace", None),
    ],
)
def test_spans(text: str, span: Span | None) -> None:
    assert span_of(text) == span


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("70-100", 70, 100),
        ("70 \u2013 100", 70, 100),
        ("70—100", 70, 100),
        ("70 - 100 mg/dL", 70, 100),
        ("70 mg/dL - 100 mg/dL", 70, 100),
        ("(3.5 - 5.0)", 3.5, 5.0),
        ("[3.5-5.0]", 3.5, 5.0),
        ("3.5 to 5.0", 3.5, 5.0),
        ("3,5 - 5,0", 3.5, 5.0),
        ("4,500-11,000", 4500, 11000),
        ("1,50,000 - 4,50,000", 150000, 450000),
        ("1.005-1.030", 1.005, 1.03),
        ("Ref: 4.0 - 5.6", 4.0, 5.6),
        ("Reference range: 4.0 - 5.6 %", 4.0, 5.6),
        ("-2 - 3", -2, 3),
        (">= 40", 40, None),
        ("≥40", 40, None),
        ("up to 40", None, 40),
        ("Up to 40 U/L", None, 40),
        ("<= 5.0", None, 5.0),
    ],
)
def test_ranges_of_numbers(text: str, low: float | None, high: float | None) -> None:
    assert parse_range(text) == ReferenceRange(low=low, high=high)


@pytest.mark.parametrize(
    ("text", "low", "high", "kept"),
    [
        ("<200", None, 200, "<200"),
        ("< 200 mg/dL", None, 200, "<200"),
        (">59", 59, None, ">59"),
        ("Less than 5.7", None, 5.7, "<5.7"),
        ("Desirable: <200", None, 200, "<200"),
    ],
)
def test_ends_that_do_not_belong_are_kept_as_text(text: str, low: float | None, high: float | None, kept: str) -> None:
    assert parse_range(text) == ReferenceRange(low=low, high=high, text=kept)


@pytest.mark.parametrize(
    "text", ["Negative", "NEGATIVE", "None Seen", "Straw/Yellow", "Clear", "Non-Reactive", "Negative to Trace"]
)
def test_ranges_in_words(text: str) -> None:
    assert parse_range(text) == ReferenceRange(text=text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "foo", "70", "mg/dL", "70-", "-", "70-100 apples", "1-2-3", "Page 1 of 2", "2024-05-13", "H", "()", "<", "13-17 M"],
)
def test_what_is_no_range(text: str) -> None:
    assert parse_range(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "M: 13-17 F: 12-15",
        "F: 12-15 M: 13-17",
        "Male 13 - 17; Female 12 - 15",
        "Men: 13-17, Women: 12-15",
        "13-17 (M), 12-15 (F)",
        "F : 12 - 15 | M : 13 - 17",
    ],
)
def test_ranges_by_sex(text: str) -> None:
    assert parse_range(text, sex=Sex.MALE) == ReferenceRange(low=13, high=17)
    assert parse_range(text, sex=Sex.FEMALE) == ReferenceRange(low=12, high=15)
    assert parse_range(text) == ReferenceRange(text=text)


@given(
    st.floats(0, 500).map(lambda value: round(value, 2)),
    st.floats(0, 500).map(lambda value: round(value, 2)),
    st.sampled_from(["-", " - ", " \u2013 ", " to "]),
)
def test_printed_ranges_are_read_back(low: float, width: float, between: str) -> None:
    high = round(low + width, 2)
    assert parse_range(f"{low:.2f}{between}{high:.2f}") == ReferenceRange(low=low, high=high)
