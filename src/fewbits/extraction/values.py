"""Printed numbers and reference ranges.

A decimal sign can be a point or a comma. Rules: with both, the last one is the decimal sign and the other groups thousands
(`1,234.5`, `1.234,5`); one comma before exactly three digits groups thousands (`1,234`), unless a lone zero is before it
(`0,125`), else it is the decimal sign (`13,5`); one point is always the decimal sign (`1.020` of a specific gravity); the same
sign twice groups thousands (`1.234.567`). A grouping that is neither by threes nor Indian (`1,50,000`) is no number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fewbits.extraction.units import is_known_unit
from fewbits.records.extraction import ReferenceRange, Sex

_DIGITS = r"\d[\d.,']*(?: \d{3}(?!\d))*(?:e[+-]?\d+)?"
_GROUPED = re.compile(r"\d{1,3}(?:([.,' ])\d{3})(?:\1\d{3})*|\d{1,2}(?:,\d{2})+,\d{3}")
_NUMBER = rf"[-+]?(?:{_DIGITS})"
_COMPARATORS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "=<": "<=", "=>": ">="}
_MARKS = re.compile(
    r"^(?:(?:HH|LL|H|L|A|C|N)\s+|[*!↑↓▲▼]+\s*)+|(?:\s*(?:\((?:HH|LL|H|L|A|C|N)\)|[*!↑↓▲▼]+)|\s+(?:HH|LL|H|L|A|C|N|High|Low|Critical))+$"
)
_BELOW = r"(?:<=|=<|<|up to|less than or equal to|less than|under|below|at most|maximum|max)"
_ABOVE = r"(?:>=|=>|>|greater than or equal to|greater than|more than|over|above|at least|minimum|min)"
_OPEN_WORDS = {
    "up to": "<=",
    "less than or equal to": "<=",
    "at most": "<=",
    "maximum": "<=",
    "max": "<=",
    "less than": "<",
    "under": "<",
}
_OPEN_WORDS |= {
    "below": "<",
    "greater than or equal to": ">=",
    "at least": ">=",
    "minimum": ">=",
    "min": ">=",
    "greater than": ">",
}
_OPEN_WORDS |= {"more than": ">", "over": ">", "above": ">"}
_LABEL = re.compile(
    r"^(?:reference(?: (?:range|interval|value)s?)?|ref\.?(?: (?:range|interval)s?)?|normal(?: range)?|desirable|optimal|adults?)"
    r"\s*[:=]?\s*(?=[\d<>(\[-]|up to|less|below|under|greater|above|over|at)",
    re.IGNORECASE,
)
_SEXES = re.compile(r"\b(female|females|women|woman|f|male|males|men|man|m)\b\s*[:=)]?", re.IGNORECASE)
RANGE_WORDS = frozenset(
    {
        *("negative", "neg", "none", "none seen", "absent", "not detected", "nil", "non-reactive", "nonreactive", "normal"),
        *("clear", "yellow", "pale yellow", "light yellow", "straw", "amber", "colorless", "trace", "none detected", "not seen"),
        *("rare", "few", "occasional", "hazy", "slightly hazy", "positive", "dark yellow", "within normal limits"),
    }
)
"""What ranges in words consist of."""


@dataclass(frozen=True, slots=True)
class Number:
    """A printed number with its comparator: `""`, `<`, `<=`, `>` or `>=`."""

    value: float
    comparator: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """All that a printed value may stand for: from `low` to `high`, an end belongs to it where it is closed."""

    low: float
    high: float
    low_closed: bool = True
    high_closed: bool = True


def _ascii(text: str) -> str:
    """Return the text with plain signs: one kind of dash, space and comparison."""
    for sign in "–—−‐‑‒―":  # noqa: RUF001 - the dashes that pages print
        text = text.replace(sign, "-")
    text = text.replace("≤", "<=").replace("≥", ">=").replace("\u2019", "'").replace("＜", "<").replace("＞", ">")  # noqa: RUF001
    return re.sub(r"\s+", " ", text).strip()


def plain_number(text: str) -> float | None:
    """Return a bare number by the rules of the module; `None` if it is none."""
    match = re.fullmatch(r"([-+]?)(\d[\d.,' ]*)(?:[eE]([+-]?\d{1,2}))?", text)
    if match is None:
        return None
    sign, digits, exponent = match.groups()
    digits = digits.rstrip()
    if digits[-1] in ".,'":
        return None
    commas, points = digits.count(","), digits.count(".")
    decimal = ""
    if commas and points:
        decimal = "," if digits.rfind(",") > digits.rfind(".") else "."
    elif points == 1:
        decimal = "."
    elif commas == 1 and not re.fullmatch(r"[1-9][\d' ]{0,6},\d{3}", digits):
        decimal = ","
    whole, found, fraction = digits.rpartition(decimal) if decimal else (digits, "", "")
    if decimal and not (found and fraction.isdigit()):
        return None
    if not whole.isdigit() and not _GROUPED.fullmatch(whole):
        return None
    value = float(re.sub(r"\D", "", whole) + (f".{fraction}" if fraction else "") + (f"e{exponent}" if exponent else ""))
    return (-value if sign == "-" else value) if math.isfinite(value) else None


def unmarked(text: str) -> str:
    """Return a printed value without the page's marks around it (`13.5 H`, `*2.1`, `7 (L)`)."""
    return _MARKS.sub("", _ascii(text)).strip()


def parse_number(text: str) -> Number | None:
    """Return the number and comparator of a printed value (`<0.1`, `>= 90`, `1.2 H`); `None` where it is no single number."""
    match = re.fullmatch(r"(<=|=<|<|>=|=>|>)?\s*(.+)", unmarked(text))
    if match is None:
        return None
    value = plain_number(match[2])
    return None if value is None else Number(value, _COMPARATORS.get(match[1] or "", ""))


def span_of(text: str) -> Span | None:
    """Return what a printed value may stand for: one number, one side (`<5`), or from-to (`0-2`); `None` for words.

    Amounts are not negative, so `<5` begins at 0.
    """
    number = parse_number(text)
    if number is not None:
        closed = number.comparator.endswith("=")
        if number.comparator.startswith("<"):
            below_zero = number.value <= 0
            return Span(-math.inf if below_zero else 0.0, number.value, low_closed=not below_zero, high_closed=closed)
        if number.comparator.startswith(">"):
            return Span(number.value, math.inf, low_closed=closed, high_closed=False)
        return Span(number.value, number.value)
    match = re.fullmatch(r"(\d[\d.,]*)\s*(?:-|to)\s*(\d[\d.,]*)", unmarked(text), re.IGNORECASE)
    ends = (plain_number(match[1]), plain_number(match[2])) if match else (None, None)
    if ends[0] is None or ends[1] is None or ends[0] > ends[1]:
        return None
    return Span(ends[0], ends[1])


def _unit_or_nothing(text: str) -> bool:
    return not text.strip() or is_known_unit(text)


def _numeric_range(text: str) -> ReferenceRange | None:
    """Return a range of numbers, without labels and brackets around it."""
    match = re.fullmatch(
        rf"({_NUMBER})\s*(?P<unit1>[^\d\s-][^\s-]*)?\s*(?:-|~|to|\.\.+)\s*({_NUMBER})(?P<unit2>.*)", text, re.IGNORECASE
    )
    if match is not None:
        low, high = plain_number(match[1]), plain_number(match[3])
        if low is None or high is None or not _unit_or_nothing(match["unit1"] or "") or not _unit_or_nothing(match["unit2"]):
            return None
        return ReferenceRange(low=low, high=high)
    match = re.fullmatch(rf"({_BELOW}|{_ABOVE})\s*({_NUMBER})(.*)", text, re.IGNORECASE)
    if match is None:
        return None
    value = plain_number(match[2])
    if value is None or not _unit_or_nothing(match[3]):
        return None
    word = match[1].lower()
    comparator = _COMPARATORS.get(word) or _OPEN_WORDS[word]
    strict = comparator + match[2] if comparator in ("<", ">") else None
    return ReferenceRange(high=value, text=strict) if comparator[0] == "<" else ReferenceRange(low=value, text=strict)


def _of_sexes(text: str) -> dict[Sex, ReferenceRange]:
    """Return the ranges of a text such as `M: 13-17 F: 12-15` or `13-17 (M), 12-15 (F)`; empty where it is not of that kind."""
    marks = list(_SEXES.finditer(text))
    kinds = [Sex.FEMALE if mark[1].lower()[0] in "fw" else Sex.MALE for mark in marks]
    if set(kinds) != {Sex.FEMALE, Sex.MALE} or len(kinds) != 2:
        return {}
    if text[: marks[0].start()].strip(" ([,;/|"):
        pieces = [text[: marks[0].start()], text[marks[0].end() : marks[1].start()]]
    else:
        pieces = [text[marks[0].end() : marks[1].start()], text[marks[1].end() :]]
    found = [_numeric_range(piece.strip(" ()[],;/|:")) for piece in pieces]
    return {kind: each for kind, each in zip(kinds, found, strict=True) if each is not None} if all(found) else {}


def ranges_by_sex(text: str) -> dict[Sex, ReferenceRange]:
    """Return the range of each sex where the text gives both, else nothing."""
    return _of_sexes(_ascii(text))


def is_range_word(text: str) -> bool:
    """Say whether a text is a range in words (`Negative`, `Straw/Yellow`)."""
    pieces = re.split(r"\s*(?:/|,|\bor\b|\bto\b|-)\s*", text.casefold())
    return text.casefold() in RANGE_WORDS or all(piece in RANGE_WORDS for piece in pieces)


def parse_range(text: str, *, sex: Sex | None = None) -> ReferenceRange | None:
    """Return a printed range; `None` where the text is none.

    `70 - 100`, `<200`, `>= 40`, `(3.5 to 5.0)`, `up to 40`, `Negative`, `M: 13-17 F: 12-15`. Open ranges that exclude their end
    (`<200`) keep it as `text` (`<200`); ranges by sex without a `sex` keep the whole text and no numbers.
    """
    plain = _ascii(text)
    by_sex = _of_sexes(plain)
    if by_sex:
        return by_sex[sex] if sex is not None else ReferenceRange(text=plain)
    while plain[:1] in ("(", "[") and plain[-1:] in (")", "]"):
        plain = plain[1:-1].strip()
    plain = _LABEL.sub("", plain).strip()
    numeric = _numeric_range(plain)
    if numeric is not None:
        return numeric
    return ReferenceRange(text=plain) if plain and is_range_word(plain) else None
