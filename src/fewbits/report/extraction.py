"""The extraction section of the report: how well pages were read, by variant, level, panel and test; then times."""

from __future__ import annotations

from collections.abc import Iterable

from fewbits.analysis.wording import count
from fewbits.records.estimate import Estimate
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.extraction_breakdowns import difference_cells, levels, panels, worst_tests
from fewbits.report.extraction_runs import Shown, run_blocks
from fewbits.report.tables import bullets, table
from fewbits.report.verdicts import reason_words

_NOTHING_COUNTED = "no page has anything to count it on"
_RATE_WORDS = {
    "field_f1": ("field F1", _NOTHING_COUNTED),
    "value_accuracy": ("value accuracy", _NOTHING_COUNTED),
    "unit_accuracy": ("unit accuracy", _NOTHING_COUNTED),
    "range_accuracy": ("range accuracy", _NOTHING_COUNTED),
    "flag_accuracy": ("flag accuracy", _NOTHING_COUNTED),
    "critical_sensitivity": ("critical sensitivity", "no page holds a critical result"),
    "critical_precision": ("critical precision", "no result was reported as critical"),
}
"""Rate -> its name, and why it has no value where labels exist."""
_REASONS = {
    "NO_CHECKS": "the pages have no labels",
    "NO_REFERENCE": "it and the reference were not asked about the same pages",
}
"""Reason codes that say more about pages than in general."""


def has_extraction(summary: SweepSummary) -> bool:
    """Whether any row is a pipeline's that reads pages."""
    return any(row.extraction is not None for session in summary.sessions for row in session.per_quant)


def extraction_blocks(session: Session) -> list[str]:
    """Return heading, tables and notes; nothing where no row is about pages."""
    shown = [(row, row.extraction) for row in session.per_quant if row.extraction is not None]
    if not shown:
        return []
    return [
        "### Extraction",
        _accuracy_table(shown),
        *_other_differences(shown),
        _notes(shown),
        *levels(shown),
        *panels(shown),
        *worst_tests(shown),
        *run_blocks(session, shown),
    ]


def extraction_estimates(row: QuantRow) -> tuple[tuple[str, Estimate | None], ...]:
    """Return what of a row's extraction block has, or should have, an interval."""
    found = row.extraction
    if found is None:
        return ()
    rates = [(words, getattr(found.rates, name)) for name, (words, _) in _RATE_WORDS.items()] if found.rates else []
    compared = [("difference of field F1", found.difference.field_f1.estimate)] if found.difference else []
    return (*rates, *compared, ("self-consistency", found.self_consistency.estimate))


def _accuracy_table(shown: list[Shown]) -> str:
    header = (
        "quant",
        "field F1",
        "difference to the reference",
        "pages that differ",
        "value accuracy",
        "unit",
        "range",
        "flag",
        "critical sensitivity",
        "critical precision",
    )
    rows = [[markdown_name(row.quant_tag), *_accuracy_cells(row, found)] for row, found in shown]
    return table(header, rows, numeric=range(1, len(header)))


def _accuracy_cells(row: QuantRow, found: RowExtraction) -> list[str]:
    rates = {name: getattr(found.rates, name, None) for name in _RATE_WORDS}
    difference = found.difference.field_f1 if found.difference is not None else None
    return [
        formats.score_estimate(rates["field_f1"]),
        *difference_cells(row, difference, found.difference.pages if found.difference else 0),
        formats.percent_estimate(rates["value_accuracy"]),
        *(formats.percent(_value(rates[name])) for name in ("unit_accuracy", "range_accuracy", "flag_accuracy")),
        formats.percent_estimate(rates["critical_sensitivity"]),
        formats.percent_estimate(rates["critical_precision"]),
    ]


def _other_differences(shown: list[Shown]) -> list[str]:
    """Return the differences beyond field F1: a variant may read fields as well and still lose what matters most."""
    header = (
        "quant",
        "difference in value accuracy",
        "pages that differ",
        "difference in critical sensitivity",
        "pages that differ",
    )
    rows = [
        [
            markdown_name(row.quant_tag),
            *difference_cells(row, found.difference.value_accuracy, found.difference.pages),
            *difference_cells(row, found.difference.critical_sensitivity, found.difference.pages),
        ]
        for row, found in shown
        if found.difference is not None and not row.is_reference
    ]
    return [table(header, rows, numeric=range(1, len(header)))] if rows else []


def _notes(shown: list[Shown]) -> str:
    failed = [
        f"{markdown_name(row.quant_tag)} gave no usable report for {found.failed_pages} of "
        f"{count(found.asked_pages, 'page')}; these count as reports without tests."
        for row, found in shown
        if found.failed_pages
    ]
    return bullets([*_interval_notes(found for _, found in shown), *_gaps(shown), *failed])


def _interval_notes(blocks: Iterable[RowExtraction]) -> list[str]:
    """Say what the brackets are about."""
    estimates = [found.rates.field_f1 for found in blocks if found.rates is not None and found.rates.field_f1 is not None]
    known = [one for one in estimates if one.low is not None]
    if not known:
        return ["No interval could be computed; see *What is uncertain*."] if estimates else []
    return [
        f"Brackets: {formats.level(known[0].level)} intervals. Their units are pages ({known[0].n} here), never fields: the "
        "fields of one page are read well or badly together. Differences are paired by page; they rest on the pages that differ "
        "alone, so read them beside that number. Value, unit, range and flag: of the tests that were found, the share that is "
        "right. Critical: sensitivity is the share of the critical results that were reported as such, precision the share of "
        "those reported that are.",
    ]


def _gaps(shown: list[Shown]) -> list[str]:
    """Explain every dash of the accuracy tables."""
    concerned: dict[tuple[str, str], list[str]] = {}
    for row, found in shown:
        for words, reason in _missing(row, found):
            concerned.setdefault((words, reason), []).append(markdown_name(row.quant_tag))
    return [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no {words}: {reason}."
        for (words, reason), names in concerned.items()
    ]


def _missing(row: QuantRow, found: RowExtraction) -> list[tuple[str, str]]:
    """Return (what is missing, why in safe words)."""
    if found.rates is None:
        return [("accuracy", _reason(found, "rates"))]
    gaps = [words for name, words in _RATE_WORDS.items() if getattr(found.rates, name) is None]
    if found.difference is None and not row.is_reference:
        gaps.append(("difference to the reference", _reason(found, "difference")))
    return gaps


def _reason(found: RowExtraction, field: str) -> str:
    code = found.unavailable.get(field, "")
    return markdown_text(_REASONS.get(code) or reason_words(code)) or "no reason recorded"


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value
