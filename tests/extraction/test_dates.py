"""Dates: ISO only where one reading is possible."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.dates import iso_date


@pytest.mark.parametrize(
    ("printed", "iso"),
    [
        ("2024-03-05", "2024-03-05"),
        ("2024/3/5", "2024-03-05"),
        ("2024.03.05", "2024-03-05"),
        ("2024-03-05T10:32:00Z", "2024-03-05"),
        ("2024-03-05 10:32", "2024-03-05"),
        ("Mar 5, 2024", "2024-03-05"),
        ("March 5th, 2024", "2024-03-05"),
        ("MARCH 5 2024 08:15 AM", "2024-03-05"),
        ("5 Mar 2024", "2024-03-05"),
        ("05-Mar-2024", "2024-03-05"),
        ("05-MAR-2024 10:32", "2024-03-05"),
        ("5th of March 2024", "2024-03-05"),
        ("05Mar2024", "2024-03-05"),
        ("Sept. 3, 2023", "2023-09-03"),
        ("13/05/2024", "2024-05-13"),
        ("05/13/2024", "2024-05-13"),
        ("05/05/2024", "2024-05-05"),
        ("13.05.2024", "2024-05-13"),
        (" 29  Feb 2024 ", "2024-02-29"),
    ],
)
def test_one_reading(printed: str, iso: str) -> None:
    assert iso_date(printed) == iso


@pytest.mark.parametrize(
    "printed",
    [
        "03/05/2024",
        "3-5-2024",
        "03.05.2024",
        "03/05/24",
        "5 Mar 24",
        "29 Feb 2023",
        "31/31/2024",
        "2024-13-05",
        "yesterday",
        "",
        "12345",
    ],
)
def test_other_texts_stay_as_printed(printed: str) -> None:
    assert iso_date(printed) == printed


@given(st.dates(datetime.date(1900, 1, 1)), st.sampled_from(["%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%d-%b-%Y", "%b %d, %Y"]))
def test_every_date_is_read_back(date: datetime.date, form: str) -> None:
    assert iso_date(date.strftime(form)) == date.isoformat()


@given(st.text(max_size=30))
def test_reading_twice_changes_nothing(text: str) -> None:
    assert iso_date(iso_date(text)) == iso_date(text)
