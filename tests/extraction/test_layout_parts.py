"""The parts of the layout rules: tokens, headings, spellings, lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction import layout_spelling as spelling
from fewbits.extraction.layout_columns import Label, heading_of
from fewbits.extraction.layout_geometry import lines_of
from fewbits.extraction.layout_tokens import joined, parts, tokens_of
from fewbits.extraction.words import Word


def _word(text: str, x: float, y: float) -> Word:
    right = x + 10 * len(text)
    return Word(text, ((x, y), (right, y), (right, y + 20), (x, y + 20)), 0.9)


@pytest.mark.parametrize(
    ("text", "divided"),
    [
        ("13.5H", ["13.5", "H"]),
        ("H13.5", ["H", "13.5"]),
        ("<0.1*", ["<0.1", "*"]),
        ("5.08×10°/L", ["5.08", "×10°/L"]),  # noqa: RUF001 - what pages print
        ("2+A", ["2+", "A"]),
        ("PosA", ["Pos", "A"]),
        ("99mg/dL", ["99", "mg/dL"]),
        ("0.4110^3/uL", ["0.41", "10^3/uL"]),
        ("mg/dL(70-99)", ["mg/dL", "(70-99)"]),
        ("RATIO3.5", ["RATIO", "3.5"]),
        ("Name:Jane", ["Name:", "Jane"]),
        ("10^3/uL", ["10^3/uL"]),
        ("x10E3/uL", ["x10E3/uL"]),
        ("T3", ["T3"]),
        ("A1c", ["A1c"]),
        ("13.5-17.5", ["13.5-17.5"]),
    ],
)
def test_what_is_printed_without_a_space_is_divided(text: str, divided: list[str]) -> None:
    assert [text[start:end] for start, end in parts(text)] == divided


@given(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=25))
def test_parts_are_the_text_again(text: str) -> None:
    spans = parts(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)


def test_leaders_are_white_space() -> None:
    (line,) = lines_of([_word("Sodium . . . . . . 141 mmol/L", 0, 0)])
    tokens = tokens_of(line)
    assert [(token.text, token.leader) for token in tokens] == [("Sodium", False), ("141", True), ("mmol/L", False)]
    assert joined(tokens) == "Sodium 141 mmol/L"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Investigation", Label.NAME),
        ("Reference lnterval", Label.RANGE),
        ("Biological Ref. Interval", Label.RANGE),
        ("RESULTS", Label.VALUE),
        ("Abn", Label.FLAG),
        ("Previous", Label.OTHER),
        ("Hemoglobin", None),
    ],
)
def test_headings(text: str, label: Label | None) -> None:
    assert heading_of(text) is label


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1O.5", "10.5"),
        ("13 .5", "13.5"),
        ("<0.1", "<0.1"),
        ("l3", "13"),
        ("0121891", None),
        ("H", None),
        ("0-2", None),
        ("O", None),
    ],
)
def test_numbers_are_mended_only_where_one_reading_is_left(text: str, number: str | None) -> None:
    assert spelling.number_text(text) == number


def test_a_lost_power_needs_the_analyte() -> None:
    assert spelling.unit_text("10°/L") is None
    assert spelling.unit_text("10°/L", ("10^3/uL", "10^9/L")) == "10^9/L"
    assert spelling.unit_text("10°/L", ("10^9/L", "10^12/L")) is None
    assert spelling.unit_text("mlU/L") == "mIU/L"
    assert spelling.unit_text("µg/dL") == "µg/dL"
    assert spelling.unit_text("zz/qq") is None


def test_lines_that_slope_stay_lines() -> None:
    """A slope of 6 % lifts the end of a line by two lines."""
    words = []
    for row in range(4):
        for column in range(6):
            x, y = 180.0 * column, 30.0 * row
            corners = ((x, y), (x + 120, y), (x + 120, y + 20), (x, y + 20))
            words.append(Word(f"word {row}", tuple((a, b + 0.06 * a) for a, b in corners), 0.9))
    lines = lines_of(words[::-1])
    assert [[piece.text for piece in line] for line in lines] == [[f"word {row}"] * 6 for row in range(4)]


def test_two_dates_and_a_number_are_no_row() -> None:
    assert not spelling.looks_like_unit("05/05/1930")
    assert spelling.looks_like_unit("mOsm/kg")
