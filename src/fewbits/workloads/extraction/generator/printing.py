"""How one laboratory prints: its units, the form of its ranges, its marks, its dates."""

from __future__ import annotations

import datetime
import math
import random
from dataclasses import dataclass
from typing import Literal

from fewbits.extraction.analytes import Analyte, Limits
from fewbits.records.extraction import Flag, ReferenceRange

Shown = Literal["all", "none", "some"]

RANGE_FORMS = (("-", 5), (" - ", 5), (" to ", 2), (" \u2013 ", 1))
"""Between the ends of a range, with how often laboratories do so (a guess, not a survey)."""
UNIT_SPELLINGS = ("plain", "micro", "raised", "exponent", "letter")
"""`10^3/uL`, `10^3/µL`, `10³/µL` after a sign of multiplication, `x10E3/uL`, `K/uL`."""
MARKS = {
    "letters": {Flag.LOW: "L", Flag.HIGH: "H", Flag.CRITICAL_LOW: "LL", Flag.CRITICAL_HIGH: "HH", Flag.ABNORMAL: "A"},
    "words": {Flag.LOW: "Low", Flag.HIGH: "High", Flag.CRITICAL_LOW: "LL", Flag.CRITICAL_HIGH: "HH", Flag.ABNORMAL: "A"},
    "star": dict.fromkeys((Flag.LOW, Flag.HIGH, Flag.CRITICAL_LOW, Flag.CRITICAL_HIGH, Flag.ABNORMAL), "*"),
    "none": {},
}
DATE_FORMS = (
    ("{y}-{m:02}-{d:02}", True), ("{d:02} {short} {y}", True), ("{d:02}-{short}-{y}", True), ("{long} {d}, {y}", True),
    ("{short} {d}, {y}", True), ("{m:02}/{d:02}/{y}", False), ("{d:02}/{m:02}/{y}", False), ("{d:02}.{m:02}.{y}", False),
)  # fmt: skip
"""Printed forms of a date, and whether the form itself tells day from month."""
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_RAISED_DIGITS = str.maketrans("123569", "¹²³⁵⁶⁹")


@dataclass(frozen=True, slots=True)
class Printing:
    """The habits of one page."""

    si: bool
    """Whether results are in one of the further units of their analyte, where there is one."""
    units: Shown
    ranges: Shown
    between: str
    limit_space: str
    """After `<` and `>`: nothing or a space."""
    marks: str
    unit_spelling: str
    capitals: bool
    synonyms: float
    """Share of rows named by a synonym, 0..1."""
    date_form: str
    date_is_plain: bool
    range_shift: float
    """How far the laboratory's own ranges are from the table's: 1 is not at all; see `results`."""
    word_choice: int
    """Which of the words for nothing found the laboratory uses, counted round."""
    unit_choice: int
    """Which of an analyte's further units the page uses, counted round; only with `si`."""


def draw_printing(rng: random.Random) -> Printing:
    """Draw the habits of one page."""
    date_form, date_is_plain = rng.choice(DATE_FORMS)
    return Printing(
        si=rng.random() < 0.3,
        units=rng.choices(("all", "some", "none"), (88, 6, 6))[0],
        ranges=rng.choices(("all", "some", "none"), (84, 8, 8))[0],
        between=rng.choices([form for form, _ in RANGE_FORMS], [often for _, often in RANGE_FORMS])[0],
        limit_space=rng.choice(("", " ")),
        marks=rng.choices(("letters", "words", "star", "none"), (55, 12, 15, 18))[0],
        unit_spelling=rng.choice(UNIT_SPELLINGS),
        capitals=rng.random() < 0.15,
        synonyms=rng.choice((0.0, 0.15, 0.5)),
        date_form=date_form,
        date_is_plain=date_is_plain,
        range_shift=rng.choice((1.0, 1.0, 1.0, 0.96, 0.98, 1.02, 1.04)),
        word_choice=rng.choice((0, 0, 0, 0, 1, 2, 3, 4)),
        unit_choice=rng.randrange(12),
    )


def printed_date(day: datetime.date, printing: Printing) -> tuple[str, str]:
    """Return a date as printed, and as the truth has it: ISO 8601 where it can be read in one way only, else as printed."""
    month = _MONTHS[day.month - 1]  # not strftime: its month names follow the process's locale
    text = printing.date_form.format(y=day.year, m=day.month, d=day.day, short=month[:3], long=month)
    plain = printing.date_is_plain or day.day > 12 or day.day == day.month
    return text, day.isoformat() if plain else text


def spelled_unit(unit: str, spelling: str) -> str:
    """Return a unit of the analyte table as a laboratory spells it."""
    text = unit.replace("μ", "u").replace("µ", "u")
    if spelling == "letter":
        text = {"10^3/uL": "K/uL", "10^6/uL": "M/uL"}.get(text, text)
    if text.startswith("10^"):
        power, slash, rest = text[3:].partition("/")
        head = {"raised": "\u00d710" + power.translate(_RAISED_DIGITS), "exponent": f"x10E{power}"}.get(spelling, f"10^{power}")
        text = head + slash + rest
    if spelling in ("micro", "raised"):
        for name in ("uL", "ug", "umol", "uIU", "ukat", "um"):
            text = text.replace(name, "µ" + name[1:])
    if spelling == "raised":
        text = text.replace("m2", "m²")
    return text


def decimals_in(analyte: Analyte, factor: float) -> int:
    """Return the digits after the point of a value in a unit that is `factor` analyte units: about as precise as in its own."""
    return max(0, analyte.decimals + math.floor(math.log10(factor) + 0.7))


def printed_range(limits: Limits, decimals: int, printing: Printing) -> ReferenceRange | None:
    """Return a numeric range with its printed text, ends as printed; `None` where both ends are open."""
    low = None if limits.low is None else f"{limits.low:.{decimals}f}"
    high = None if limits.high is None else f"{limits.high:.{decimals}f}"
    if low is not None and high is not None:
        text = f"{low}{printing.between}{high}"
    elif high is not None:
        text = f"<{printing.limit_space}{high}"
    elif low is not None:
        text = f">{printing.limit_space}{low}"
    else:
        return None
    return ReferenceRange(low=None if low is None else float(low), high=None if high is None else float(high), text=text)
