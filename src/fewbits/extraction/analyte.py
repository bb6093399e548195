"""What is known about one analyte: the nouns of the table in `analytes`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fewbits.records.extraction import ReportType, Sex


@dataclass(frozen=True, slots=True)
class Limits:
    """A reference range in the analyte's own unit: both ends belong to it, `None` is an open end."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Analyte:
    """One quantity that labs report.

    `name` is how reports print it, `synonyms` other printings (compared by `names.normalized`, never by substring). `unit` is
    the unit of every number here (`""` for pure numbers: pH, ratios); `convertible` are further units with the factor that
    turns a value into `unit`, `offsets` what is added after it (only for scales with another zero). `ranges` maps a sex, or
    `None` for both, to its range. `critical` are limits beyond which a lab calls at once. `plausible` bounds what a living
    person can have: our own wide bounds, for misread numbers only. `words` are the accepted results where the result is no
    number.
    """

    key: str
    name: str
    panel: ReportType
    unit: str
    synonyms: tuple[str, ...] = ()
    convertible: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    ranges: dict[Sex | None, Limits] = field(default_factory=dict)
    critical: Limits = Limits(None, None)
    plausible: Limits = Limits(None, None)
    words: tuple[str, ...] = ()
    normal_words: tuple[str, ...] = ()
    decimals: int = 1
    """Digits after the point, as labs print this analyte in `unit`."""
    source: str = ""


def both(low: float | None, high: float | None) -> dict[Sex | None, Limits]:
    """Return ranges that hold for either sex."""
    return {None: Limits(low, high)}


def by_sex(female: tuple[float | None, float | None], male: tuple[float | None, float | None]) -> dict[Sex | None, Limits]:
    """Return ranges that differ by sex."""
    return {Sex.FEMALE: Limits(*female), Sex.MALE: Limits(*male)}


def below(end: float) -> float:
    """Return the largest number below an end that does not belong to its range (`<200`)."""
    return math.nextafter(end, -math.inf)
