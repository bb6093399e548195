"""What is implausible in a report: said, never repaired."""

from __future__ import annotations

from collections.abc import Iterator

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.classification import panels_of_rows
from fewbits.extraction.flags import compare, converted, decided_by_printed_range, known_analyte
from fewbits.extraction.names import normalized
from fewbits.extraction.units import is_unit_of, normalized_unit
from fewbits.extraction.values import span_of
from fewbits.records.extraction import Flag, Issue, IssueKind, LabReport, LabTest, Sex

_MARKS: dict[str, frozenset[Flag]] = {
    **dict.fromkeys(("h", "high"), frozenset({Flag.HIGH, Flag.CRITICAL_HIGH})),
    **dict.fromkeys(("l", "low"), frozenset({Flag.LOW, Flag.CRITICAL_LOW})),
    **dict.fromkeys(("hh", "critical high", "panic high"), frozenset({Flag.HIGH, Flag.CRITICAL_HIGH})),
    **dict.fromkeys(("ll", "critical low", "panic low"), frozenset({Flag.LOW, Flag.CRITICAL_LOW})),
    **dict.fromkeys(("n", "normal", "wnl"), frozenset({Flag.NORMAL})),
    **dict.fromkeys(("a", "abn", "abnormal"), frozenset(Flag) - {Flag.NORMAL}),
}
"""Marks of pages that name a side, and the flags that agree with them; `*` and `!` name none."""


def find_issues(report: LabReport) -> tuple[Issue, ...]:
    """Return everything implausible, in the order of the rows; a report without tests has one issue."""
    if not report.tests:
        return (Issue(kind=IssueKind.NO_TESTS, detail="no row of a lab report"),)
    sex = report.patient_info.gender if report.patient_info is not None else None
    issues: list[Issue] = []
    seen: dict[tuple[str, str, str], int] = {}
    panels = panels_of_rows(report.tests, report.report_type)
    for row, test in enumerate(report.tests):
        analyte = known_analyte(test, panels[row])
        unit = normalized_unit(test.unit) or (test.unit or "").casefold()
        # white cells of blood and of urine share a name
        key = (normalized(test.test_name), unit, analyte.key if analyte is not None else "")
        if key in seen:
            issues.append(_issue(IssueKind.DUPLICATE_TEST, row, test, f"same name and unit as row {seen[key]}"))
        seen.setdefault(key, row)
        issues += [*_value_issues(row, test, analyte), *_unit_issues(row, test, analyte), *_range_issues(row, test, sex)]
    return tuple(issues)


def _issue(kind: IssueKind, row: int, test: LabTest, detail: str) -> Issue:
    return Issue(kind=kind, row=row, test_name=test.test_name, detail=detail)


def _value_issues(row: int, test: LabTest, analyte: Analyte | None) -> Iterator[Issue]:
    """Empty, negative and impossible values; details hold limits, never the value."""
    if not test.value.strip():
        yield _issue(IssueKind.EMPTY_VALUE, row, test, "the row has no value")
        return
    span = span_of(test.value)
    if span is None:
        return
    may_be_negative = analyte is not None and analyte.plausible.low is not None and analyte.plausible.low < 0
    if span.high < 0 and not may_be_negative:
        yield _issue(IssueKind.NEGATIVE_VALUE, row, test, "the value is below zero")
        return
    own = converted(span, test.unit, analyte) if analyte is not None else None
    if analyte is None or own is None:
        return
    low, high = analyte.plausible.low, analyte.plausible.high
    if compare(own, low, high) in (Flag.LOW, Flag.HIGH):
        yield _issue(IssueKind.IMPLAUSIBLE_VALUE, row, test, f"outside of {low} to {high} {analyte.unit}".rstrip())


def _unit_issues(row: int, test: LabTest, analyte: Analyte | None) -> Iterator[Issue]:
    if test.unit is None or not test.unit.strip():
        return
    if normalized_unit(test.unit) is None:
        yield _issue(IssueKind.UNKNOWN_UNIT, row, test, f"{test.unit!r} is no unit that is known here")
    elif analyte is not None and not is_unit_of(test.unit, analyte) and not (analyte.words and not analyte.ranges):
        yield _issue(
            IssueKind.UNIT_OF_ANOTHER_QUANTITY,
            row,
            test,
            f"{analyte.name} is given in {analyte.unit or 'no unit'}, not {test.unit}",
        )


def _range_issues(row: int, test: LabTest, sex: Sex | None) -> Iterator[Issue]:
    """Reversed ranges, and marks that the page's own range contradicts."""
    printed, span = test.reference_range, span_of(test.value)
    if printed is None:
        return
    if printed.low is not None and printed.high is not None and printed.low > printed.high:
        yield _issue(IssueKind.RANGE_REVERSED, row, test, "the range's low end is above its high end")
        return
    agreeing = _MARKS.get(" ".join((test.printed_flag or "").casefold().strip(" *!()[]").split()))
    decided = decided_by_printed_range(span, printed, sex) if span is not None and agreeing is not None else None
    if agreeing is not None and decided is not None and decided[0] is not None and decided[0] not in agreeing:
        yield _issue(
            IssueKind.FLAG_DISAGREES, row, test, f"marked {test.printed_flag!r}, but its own range says {decided[0].value}"
        )
