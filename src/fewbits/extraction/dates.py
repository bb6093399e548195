"""Printed dates: ISO 8601 where they can be read in one way only."""

from __future__ import annotations

import datetime
import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_TIME = re.compile(
    r"(?:[T,\s]+(?:at\s+)?\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:[ap]\.?m\.?)?\s*(?:Z|UTC|[+-]\d{2}:?\d{2})?)$", re.IGNORECASE
)
_YEAR_FIRST = re.compile(r"(?P<year>\d{4})\s*[-/.]\s*(?P<month>\d{1,2})\s*[-/.]\s*(?P<day>\d{1,2})")
_MONTH_FIRST = re.compile(_MONTH + r"[\s-]*(?P<day>\d{1,2})(?:st|nd|rd|th)?[\s,.-]+(?P<year>\d{4})", re.IGNORECASE)
_DAY_FIRST = re.compile(
    r"(?P<day>\d{1,2})(?:st|nd|rd|th)?[\s./-]*(?:of\s+)?" + _MONTH + r"[\s,./-]*(?P<year>\d{4})", re.IGNORECASE
)
_YEAR_AND_NAME = re.compile(r"(?P<year>\d{4})[\s/-]+" + _MONTH + r"[\s/-]+(?P<day>\d{1,2})", re.IGNORECASE)
_NUMBERS = re.compile(r"(\d{1,2})\s*[-/.]\s*(\d{1,2})\s*[-/.]\s*(\d{4})")


def _iso(year: int, month: int, day: int) -> str | None:
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        return None


def iso_date(text: str) -> str:
    """Return a printed date as `YYYY-MM-DD` where only one reading is possible, else the text with single spaces.

    A time of day after it is dropped. `03/05/2024` is ambiguous (two orders are usual), `13/05/2024` and `05/05/2024` are not;
    years of two digits and days that do not exist stay as printed.
    """
    printed = " ".join(text.split())
    bare = _TIME.sub("", printed).strip(" ,")
    for pattern in (_YEAR_FIRST, _MONTH_FIRST, _DAY_FIRST, _YEAR_AND_NAME):
        match = pattern.fullmatch(bare)
        if match is not None:
            name = match["month"]
            month = int(name) if name.isdigit() else _MONTHS.index(name[:3].lower()) + 1
            return _iso(int(match["year"]), month, int(match["day"])) or printed
    match = _NUMBERS.fullmatch(bare)
    if match is None:
        return printed
    first, second, year = (int(each) for each in match.groups())
    readings = {each for each in (_iso(year, first, second), _iso(year, second, first)) if each is not None}
    return readings.pop() if len(readings) == 1 else printed
