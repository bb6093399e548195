"""One row of a report: an analyte's result drawn in, below or above its range, and printed as the page's laboratory does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from fewbits.extraction.analytes import ANALYTES, Analyte, Limits, analyte_table
from fewbits.records.extraction import Flag, ReferenceRange, Sex
from fewbits.workloads.extraction.generator.printing import MARKS, Printing, decimals_in, printed_range, spelled_unit

OUTCOMES = ((Flag.NORMAL, 76), (Flag.LOW, 8), (Flag.HIGH, 12), (Flag.CRITICAL_LOW, 2), (Flag.CRITICAL_HIGH, 2))
"""Where a value lies, with its weight."""
MEASURED_FROM = frozenset(
    (
        *("tsh", "anti_tpo", "direct_bilirubin", "total_bilirubin", "vldl_cholesterol", "urine_urobilinogen"),
        *("basophils_percent", "basophils_absolute", "eosinophils_percent", "eosinophils_absolute"),
    )
)
"""Analytes of which there can be too little to measure."""
BEYOND = 0.08
"""Share of such results among those of these analytes, and of `>90` among filtration rates."""
WORD_ABNORMAL = 0.2
"""Share of abnormal results among those in words."""


USUAL_SYNONYMS = 6
"""How many of an analyte's synonyms are printed: the table begins with the usual ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one row prints; `None` is not printed. `footnote` is the number of a remark below the table."""

    name: str
    value: str
    unit: str | None
    reference: ReferenceRange | None
    mark: str | None
    analyte: str
    footnote: int | None = None


@dataclass(frozen=True, slots=True)
class _Scale:
    """An analyte in the unit that is printed, `factor` analyte units each, and `offset` more; `limits` rounded as printed."""

    unit: str
    factor: float
    offset: float
    decimals: int
    limits: Limits

    def of(self, own: float) -> float:
        """Return a number of the analyte's own unit in this one."""
        return (own - self.offset) / self.factor


def draw_row(analyte: Analyte, sex: Sex | None, printing: Printing, rng: random.Random, *, name_room: int) -> Row:
    """Draw one row: name (of at most `name_room` characters where there is one), result, unit, range and mark."""
    name = _name(analyte, printing, rng, name_room)
    show_unit, show_range = _shown(printing.units, rng), _shown(printing.ranges, rng)
    scale = _scale(analyte, sex, printing) if not analyte.words or (analyte.ranges and rng.random() < 0.5) else None
    if scale is None:
        value, reference, flag = _word_result(analyte, printing, rng)
    else:
        value, flag = _number_result(analyte, scale, rng)
        value = value.replace("<", f"<{printing.limit_space}").replace(">", f">{printing.limit_space}")
        reference = printed_range(scale.limits, scale.decimals, printing)
    unit = spelled_unit(scale.unit, printing.unit_spelling) if scale is not None and scale.unit and show_unit else None
    mark = MARKS[printing.marks].get(flag) if flag is not None else None
    return Row(name, value, unit, reference if show_range else None, mark, analyte.key)


def _name(analyte: Analyte, printing: Printing, rng: random.Random, room: int) -> str:
    """Return the name or one of its usual synonyms, in capitals where the laboratory prints so."""
    usual = usual_synonyms(analyte.key)
    names = usual if usual and rng.random() < printing.synonyms else (analyte.name,)
    fitting = [name for name in names if len(name) <= room] or [min((analyte.name, *usual), key=len)]
    name = rng.choice(fitting)
    return name.upper() if printing.capitals else name


@cache
def usual_synonyms(key: str) -> tuple[str, ...]:
    """Return an analyte's first synonyms that name nothing else in the same panel (`Neut` is a share as well as a count)."""
    analyte = analyte_table()[key]
    others = {
        name.casefold()
        for other in ANALYTES
        if other.panel is analyte.panel and other.key != analyte.key
        for name in (other.name, *other.synonyms)
    }
    return tuple(name for name in analyte.synonyms if name.casefold() not in others)[:USUAL_SYNONYMS]


def _shown(habit: str, rng: random.Random) -> bool:
    """Return whether this row shows what the page shows in all, some or no rows."""
    return habit == "all" or (habit == "some" and rng.random() < 0.7)


def _word_result(analyte: Analyte, printing: Printing, rng: random.Random) -> tuple[str, ReferenceRange | None, Flag | None]:
    """Return a result in words, the range in words, and whether the two agree."""
    normal = analyte.normal_words
    # a laboratory has one word for nothing found; colours vary
    usual = normal[printing.word_choice % len(normal)] if "Negative" in normal else rng.choice(normal)
    reference = ReferenceRange(text=usual if "Negative" in normal else normal[0])
    # lone plus signs are left out: nobody could tell them from a mark of the page
    unusual = [word for word in analyte.words if word not in normal and word.strip("+")]
    if unusual and rng.random() < WORD_ABNORMAL:
        return rng.choice(unusual), reference, Flag.ABNORMAL
    return usual, reference, Flag.NORMAL


def _scale(analyte: Analyte, sex: Sex | None, printing: Printing) -> _Scale:
    """Choose the unit and the laboratory's own range in it."""
    unit, factor = analyte.unit, 1.0
    if printing.si and analyte.convertible:
        further = list(analyte.convertible.items())
        unit, factor = further[printing.unit_choice % len(further)]
    decimals, offset = decimals_in(analyte, factor), analyte.offsets.get(unit, 0.0)
    ranges = analyte.ranges
    limits = ranges.get(None) or (ranges.get(sex) if sex is not None else None) or next(iter(ranges.values()), Limits(None, None))
    low, high = (
        None if end is None else round((end - offset) / factor, decimals) for end in _shifted(limits, printing.range_shift)
    )
    if low is not None and high is not None and low >= high:
        low, high = (None if end is None else round((end - offset) / factor, decimals) for end in (limits.low, limits.high))
    return _Scale(unit, factor, offset, decimals, Limits(low, high))


def _shifted(limits: Limits, shift: float) -> tuple[float | None, float | None]:
    """Return the ends moved by twice the shift's share of the range's width (half of the end where the other is open)."""
    low, high = limits.low, limits.high
    width = high - low if low is not None and high is not None else (low or high or 0.0) / 2
    by = 2 * (shift - 1) * width
    # nothing is less than nothing: a range that begins at zero still does
    return low and max(low + by, 0.0), None if high is None else high + by


def _number_result(analyte: Analyte, scale: _Scale, rng: random.Random) -> tuple[str, Flag | None]:
    """Return a printed number and how it lies to the laboratory's own range (critical limits first)."""
    if rng.random() < BEYOND and (beyond := _beyond_detection(analyte, scale)) is not None:
        low = scale.limits.low
        return beyond, Flag.LOW if low and beyond.startswith("<") and float(beyond[1:]) <= low else None
    outcome = rng.choices([flag for flag, _ in OUTCOMES], [weight for _, weight in OUTCOMES])[0]
    number = _bounded(_drawn(outcome, analyte, scale, rng), analyte, scale)
    text = f"{number:.{scale.decimals}f}"
    return text, _side(float(text), analyte, scale)


def _beyond_detection(analyte: Analyte, scale: _Scale) -> str | None:
    """Return `>90` for a filtration rate, `<0.01` for what can be too little to measure, `None` for all else."""
    if "egfr" in analyte.key:
        return ">90"
    low, high = scale.limits.low, scale.limits.high
    if analyte.key not in MEASURED_FROM or high is None:
        return None
    smallest = max(10.0**-scale.decimals, float(f"{(low or high * 0.2) / 4:.0e}"))
    return f"<{smallest:.{scale.decimals}f}"


def _drawn(outcome: Flag, analyte: Analyte, scale: _Scale, rng: random.Random) -> float:
    """Draw a number for an outcome; ends that are open, and limits that do not exist, fall back to the nearest outcome."""
    low, high = scale.limits.low, scale.limits.high
    if low is None and high is None:
        least, most = analyte.plausible.low or 0.0, analyte.plausible.high or 1.0
        return scale.of(rng.uniform(least, most))
    bottom = low if low is not None else (high or 0.0) * 0.45
    top = high if high is not None else bottom * 1.8
    width, far = top - bottom, rng.uniform(0.05, 0.6)
    critical_low, critical_high = (
        None if end is None else scale.of(end) for end in (analyte.critical.low, analyte.critical.high)
    )
    if outcome is Flag.CRITICAL_LOW and critical_low is not None and low is not None:
        return critical_low - far * 0.5 * min(width, critical_low)
    if outcome is Flag.CRITICAL_HIGH and critical_high is not None and high is not None:
        return critical_high + far * width
    if outcome in (Flag.LOW, Flag.CRITICAL_LOW) and low is not None:
        return low - far * min(width, low)
    if outcome in (Flag.HIGH, Flag.CRITICAL_HIGH) and high is not None:
        return high + far * width
    return rng.uniform(bottom + 0.06 * width, top - 0.06 * width)


def _bounded(number: float, analyte: Analyte, scale: _Scale) -> float:
    """Keep a number within what a living person can have."""
    low = scale.of(analyte.plausible.low or 0.0)
    high = number if analyte.plausible.high is None else scale.of(analyte.plausible.high)
    return min(max(number, low), high)


def _side(number: float, analyte: Analyte, scale: _Scale) -> Flag:
    """Return how a printed number lies to the critical limits and the laboratory's range."""
    own = number * scale.factor + scale.offset
    if analyte.critical.low is not None and own < analyte.critical.low:
        return Flag.CRITICAL_LOW
    if analyte.critical.high is not None and own > analyte.critical.high:
        return Flag.CRITICAL_HIGH
    low, high = scale.limits.low, scale.limits.high
    # an open range is printed as `<200`, which 200 is not
    if low is not None and (number < low or (high is None and number == low)):
        return Flag.LOW
    if high is not None and (number > high or (low is None and number == high)):
        return Flag.HIGH
    return Flag.NORMAL
