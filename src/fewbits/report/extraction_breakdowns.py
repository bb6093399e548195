"""Where pages are read well and where badly: by difficulty level, by panel, and the tests that are read worst."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from fewbits.analysis.wording import count
from fewbits.records.extraction import Level, ReportType
from fewbits.records.extraction_metrics import GroupRates, RateDifference
from fewbits.records.summary import QuantRow
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.extraction_runs import Shown
from fewbits.report.tables import bullets, table

FEWEST_OCCURRENCES = 3
"""Rows of a test that the pages need to hold, for it to be listed: one or two say nothing about a test."""
LISTED_TESTS = 10
_NAME_LIMIT = 60


def levels(shown: list[Shown]) -> list[str]:
    """Return field F1 of every variant on the pages of each difficulty level, easiest first."""
    header = ("level", "quant", "pages", "field F1", "difference to the reference", "pages that differ", "value accuracy")
    rows = [
        [
            _name(level),
            markdown_name(row.quant_tag),
            str(rates.pages),
            formats.score_estimate(rates.field_f1),
            *difference_cells(row, compared.field_f1 if compared else None, compared.pages if compared else 0),
            formats.percent_estimate(rates.value_accuracy),
        ]
        for level in _in_order((name for _, found in shown for name in found.by_level), Level)
        for row, found in shown
        if (rates := found.by_level.get(level)) is not None
        for compared in [found.difference_by_level.get(level)]
    ]
    return ["#### By difficulty", table(header, rows, numeric=range(2, len(header)))] if rows else []


def panels(shown: list[Shown]) -> list[str]:
    """Return the counts of every variant over the tests of each panel."""
    header = ("panel", "quant", "tests on the pages", "found", "field F1", "value accuracy", "unit", "range", "flag")
    rows = [
        [_name(panel), markdown_name(row.quant_tag), *_panel_cells(rates)]
        for panel in _in_order((name for _, found in shown for name in found.by_panel), ReportType)
        for row, found in shown
        if (rates := found.by_panel.get(panel)) is not None
    ]
    if not rows:
        return []
    note = "Brackets as above, over the pages that have the panel; unit, range and flag are counted without intervals."
    return ["#### By panel", table(header, rows, numeric=range(2, len(header))), note]


def _panel_cells(rates: GroupRates) -> list[str]:
    counts = rates.counts
    shares = (counts.unit_accuracy, counts.range_accuracy, counts.flag_accuracy)
    return [
        str(counts.true_tests),
        str(counts.matched_tests),
        formats.score_estimate(rates.field_f1),
        formats.percent_estimate(rates.value_accuracy),
        *(formats.percent(share.value) for share in shares),
    ]


def worst_tests(shown: list[Shown]) -> list[str]:
    """List the tests that all variants together read worst, a column for each variant."""
    worst = sorted(_imperfect(shown).items(), key=lambda item: (item[1], item[0]))[:LISTED_TESTS]
    header = ("test", "on the pages", *(markdown_name(row.quant_tag) for row, _ in shown))
    rows = [
        [
            _name(test),
            str(max(found.by_test[test].counts.true_tests for _, found in shown if test in found.by_test)),
            *(_test_cell(found.by_test.get(test)) for _, found in shown),
        ]
        for test, _ in worst
    ]
    wrong = [
        f"{markdown_name(row.quant_tag)} missed {names.false_negative} of {count(found.rates.counts.true_tests, 'test')}, and "
        f"read {names.false_positive} that no page holds."
        for row, found in shown
        if found.rates is not None
        for names in [found.rates.counts.names]
        if names.false_negative or names.false_positive
    ]
    if not rows and not wrong:
        return []
    note = (
        f"Field F1, and in parentheses the fields that are right / wrong or invented / wrong or not read. Up to {LISTED_TESTS} "
        f"tests that occur at least {FEWEST_OCCURRENCES} times, the lowest F1 over all variants first. No intervals: the worst "
        "of many looks worse than it is, so take these as places to look."
    )
    shown_table = [table(header, rows, numeric=range(1, len(header))), note] if rows else []
    return ["#### The tests that are read worst", *shown_table, bullets(wrong)]


def _imperfect(shown: list[Shown]) -> dict[str, float]:
    """Return test -> field F1 over all variants together, of the tests that occur often enough and are not always right."""
    counts: dict[str, list[int]] = {}
    for _, found in shown:
        for test, rates in found.by_test.items():
            metrics = rates.counts
            if metrics.true_tests >= FEWEST_OCCURRENCES:
                sums = counts.setdefault(test, [0, 0])
                sums[0] += 2 * metrics.fields.true_positive
                sums[1] += metrics.fields.false_positive + metrics.fields.false_negative
    return {test: right / (right + wrong) for test, (right, wrong) in counts.items() if wrong}


def _test_cell(rates: GroupRates | None) -> str:
    if rates is None:
        return formats.MISSING
    fields = rates.counts.fields
    return f"{formats.score(fields.f1)} ({fields.true_positive} / {fields.false_positive} / {fields.false_negative})"


def _in_order(names: Iterable[str], known: type[StrEnum]) -> list[str]:
    """Return each name once: those of `known` in its order, then the others by name."""
    order: Mapping[str, int] = {member.value: place for place, member in enumerate(known)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))


def _name(name: str) -> str:
    return markdown_text(name, _NAME_LIMIT) or "(empty)"


def difference_cells(row: QuantRow, difference: RateDifference | None, pages: int) -> list[str]:
    """Return two cells: a variant's rate less the reference's, and how many of `pages` it rests on."""
    if row.is_reference:
        return ["reference", "reference"]
    if difference is None:
        return [formats.MISSING, formats.MISSING]
    return [formats.signed_estimate(difference.estimate), f"{difference.pages_that_differ} of {pages}"]
