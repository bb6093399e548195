"""Flags of results: absolute critical limits first, then the printed range, else the cited table.

A critical limit needs the unit. A value such as `<5` or `0-2` gets a flag only where all that it may stand for lies on one side.
No medical advice: a flag repeats what a range says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import analyte_table
from fewbits.extraction.classification import panels_of_rows
from fewbits.extraction.names import analyte_of
from fewbits.extraction.units import convert
from fewbits.extraction.values import Span, is_range_word, parse_range, ranges_by_sex, span_of, unmarked
from fewbits.records.extraction import Flag, FlagSource, LabReport, LabTest, ReferenceRange, ReportType, Sex

Decision = tuple[Flag | None, FlagSource]

NEGATIVE_WORDS = frozenset(
    {
        "negative",
        "neg",
        "none",
        "none seen",
        "absent",
        "not detected",
        "nil",
        "non-reactive",
        "nonreactive",
        "none detected",
        "not seen",
    }
)
"""Words for the same finding: nothing there."""
_FINDINGS = frozenset(
    {
        *(
            "trace",
            "small",
            "moderate",
            "large",
            "positive",
            "pos",
            "present",
            "reactive",
            "detected",
            "few",
            "many",
            "rare",
            "occasional",
        ),
        *("abnormal", "tntc", "1+", "2+", "3+", "4+", "+", "++", "+++", "++++", "+1", "+2", "+3", "+4"),
    }
)


def known_analyte(test: LabTest, panel: ReportType | None) -> Analyte | None:
    """Return the analyte of a row: by its key, else by its name, panel and unit."""
    if test.analyte is not None:
        return analyte_table().get(test.analyte)
    return analyte_of(test.test_name, panel=panel, unit=test.unit)


def converted(span: Span, unit: str | None, analyte: Analyte) -> Span | None:
    """Return the span in the analyte's own unit; `None` where it cannot be converted."""
    low = convert(0.0 if math.isinf(span.low) else span.low, unit, analyte)
    high = convert(0.0 if math.isinf(span.high) else span.high, unit, analyte)
    if low is None or high is None:
        return None
    # without the last binary digits: 3 mg/L are 0.3 mg/dL, not a little more
    low, high = (end if math.isinf(end) else round(own, 9) for end, own in ((span.low, low), (span.high, high)))
    return Span(low, high, span.low_closed, span.high_closed)


def _below(span: Span, end: float, *, end_belongs: bool) -> bool:
    """Say whether all of the span lies below the low end of a range."""
    return span.high < end or (span.high == end and not (span.high_closed and end_belongs))


def _above(span: Span, end: float, *, end_belongs: bool) -> bool:
    return span.low > end or (span.low == end and not (span.low_closed and end_belongs))


def compare(
    span: Span, low: float | None, high: float | None, *, low_belongs: bool = True, high_belongs: bool = True
) -> Flag | None:
    """Return on which side of a range all of the span lies; `None` where it is on more than one."""
    if low is not None and _below(span, low, end_belongs=low_belongs):
        return Flag.LOW
    if high is not None and _above(span, high, end_belongs=high_belongs):
        return Flag.HIGH
    inside_low = low is None or span.low > low or (span.low == low and (low_belongs or not span.low_closed))
    inside_high = high is None or span.high < high or (span.high == high and (high_belongs or not span.high_closed))
    return Flag.NORMAL if inside_low and inside_high else None


def _printed(span: Span, printed: ReferenceRange) -> Flag | None:
    """Compare with a printed range of numbers; an end that the page excludes (`<200`) is outside."""
    text = printed.text or ""
    strict_high = text.startswith("<") and not text.startswith("<=")
    strict_low = text.startswith(">") and not text.startswith(">=")
    return compare(span, printed.low, printed.high, low_belongs=not strict_low, high_belongs=not strict_high)


def _critical(span: Span, test: LabTest, analyte: Analyte) -> Flag | None:
    """Return the critical flag, or `None`.

    Where the page's own range holds a value that nobody can have in the unit, the unit was misread: no limit applies.
    """
    own = converted(span, test.unit, analyte)
    if own is None:
        return None
    flag = compare(own, analyte.critical.low, analyte.critical.high)
    if flag not in (Flag.LOW, Flag.HIGH):
        return None
    printed = test.reference_range
    numeric = printed is not None and (printed.low is not None or printed.high is not None)
    impossible = compare(own, analyte.plausible.low, analyte.plausible.high) is not Flag.NORMAL
    if numeric and printed is not None and impossible and _printed(span, printed) is Flag.NORMAL:
        return None
    return Flag.CRITICAL_LOW if flag is Flag.LOW else Flag.CRITICAL_HIGH


def _agreed(flags: Iterable[Flag | None], source: FlagSource) -> Decision:
    """Return the flag that the ranges of all sexes in question agree on."""
    found = set(flags)
    if len(found) > 1:
        return None, FlagSource.SEX_UNKNOWN
    flag = found.pop()
    return (flag, source) if flag is not None else (None, FlagSource.WITHIN_DETECTION_LIMIT)


def _against_negative(span: Span) -> Flag | None:
    """Compare a number with a range that says there is nothing: zero is normal, more is abnormal."""
    flag = compare(span, None, 0.0)
    return Flag.ABNORMAL if flag is Flag.HIGH else flag


def decided_by_printed_range(span: Span, printed: ReferenceRange, sex: Sex | None) -> Decision | None:
    """Decide by the printed range; `None` where it says nothing about numbers or is reversed."""
    text = printed.text or ""
    if printed.low is None and printed.high is None:
        by_sex = ranges_by_sex(text)
        if by_sex:
            chosen = [by_sex[sex]] if sex is not None else list(by_sex.values())
            return _agreed((_printed(span, each) for each in chosen), FlagSource.PRINTED_RANGE)
        if _word(text) in NEGATIVE_WORDS:
            return _agreed([_against_negative(span)], FlagSource.PRINTED_RANGE)
        printed = parse_range(text, sex=sex) or printed
    if printed.low is None and printed.high is None:
        return None
    if printed.low is not None and printed.high is not None and printed.low > printed.high:
        return None
    return _agreed([_printed(span, printed)], FlagSource.PRINTED_RANGE)


def _by_table(span: Span, test: LabTest, analyte: Analyte | None, sex: Sex | None) -> Decision:
    """Decide by the cited ranges."""
    if analyte is None or not analyte.ranges:
        if analyte is not None and analyte.normal_words:
            return _agreed([_against_negative(span)], FlagSource.TABLE_RANGE)
        return None, FlagSource.NO_RANGE
    own = converted(span, test.unit, analyte)
    if own is None:
        return None, FlagSource.UNIT_UNKNOWN
    known = analyte.ranges.get(sex) if sex is not None else None
    known = known or analyte.ranges.get(None)
    chosen = list(analyte.ranges.values()) if known is None else [known]
    return _agreed((compare(own, each.low, each.high) for each in chosen), FlagSource.TABLE_RANGE)


def _word(text: str) -> str:
    return " ".join(unmarked(text).casefold().split())


def _words_of(text: str) -> frozenset[str]:
    """Return the words that a range in words accepts (`Straw/Yellow`), all those of a negative where it is one."""
    whole = _word(text)
    parts = {whole, *(part.strip() for separator in ("/", ",", " or ", " to ", "-") for part in whole.split(separator))}
    return frozenset(parts | (NEGATIVE_WORDS if parts & NEGATIVE_WORDS else set()))


def _by_words(test: LabTest, analyte: Analyte | None) -> Decision:
    """Decide a result in words: by the words of the printed range, else by those of the table."""
    value, printed = _word(test.value), test.reference_range
    known = {_word(each) for each in (analyte.words if analyte is not None else ())} | NEGATIVE_WORDS | _FINDINGS | {"normal"}
    if printed is not None and (printed.low is not None or printed.high is not None):
        return None, FlagSource.NOT_A_NUMBER
    normal, source = (
        frozenset(_word(each) for each in (analyte.normal_words if analyte is not None else ())),
        FlagSource.TABLE_RANGE,
    )
    if printed is not None and printed.text is not None and is_range_word(printed.text):
        # a page that names one of the usual words (yellow) means no harm by another (straw)
        words = _words_of(printed.text)
        normal, source = words | (normal if words & normal else frozenset()), FlagSource.PRINTED_RANGE
    if not normal:
        numeric = (printed is not None and printed.text is not None) or (analyte is not None and bool(analyte.ranges))
        return None, FlagSource.NOT_A_NUMBER if numeric else FlagSource.NO_RANGE
    if value in normal:
        return Flag.NORMAL, source
    return (Flag.ABNORMAL, source) if value in known else (None, FlagSource.NOT_A_NUMBER)


def flag_test(test: LabTest, *, sex: Sex | None, panel: ReportType | None) -> Decision:
    """Return a row's flag and what decided it, or `None` and why there is none."""
    analyte = known_analyte(test, panel)
    span = span_of(test.value)
    if span is None:
        return _by_words(test, analyte)
    critical = _critical(span, test, analyte) if analyte is not None else None
    if critical is not None:
        return critical, FlagSource.CRITICAL_LIMIT
    printed = None if test.reference_range is None else decided_by_printed_range(span, test.reference_range, sex)
    return printed if printed is not None else _by_table(span, test, analyte, sex)


def flag_report(report: LabReport) -> LabReport:
    """Return the report with flag, its source and the analyte's key in every row (a key that is there is kept)."""
    sex = report.patient_info.gender if report.patient_info is not None else None
    tests = []
    for test, panel in zip(report.tests, panels_of_rows(report.tests, report.report_type), strict=True):
        flag, source = flag_test(test, sex=sex, panel=panel)
        analyte = known_analyte(test, panel)
        key = test.analyte if test.analyte is not None or analyte is None else analyte.key
        tests.append(msgspec.structs.replace(test, flag=flag, flag_source=source, analyte=key))
    return msgspec.structs.replace(report, tests=tuple(tests))
