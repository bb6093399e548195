"""Which panel a page is about, and each of its rows, by the names of tests on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fewbits.extraction.analyte import Analyte
from fewbits.extraction.names import IN_URINE_TOO, candidates, closest
from fewbits.extraction.units import is_unit_of, normalized_unit
from fewbits.extraction.values import span_of, unmarked
from fewbits.records.extraction import LabTest, ReportType

_VALUE = re.compile(r"[<>≤≥=]*\d[\d.,]*%?|negative|positive|neg|pos|trace|normal|clear|none|absent|nil|[1-4]?\++", re.IGNORECASE)
"""What begins the value of a row, so ends its name."""


@dataclass(frozen=True, slots=True)
class Classification:
    """`confidence`: share of the matched analytes that belong to the type, 0..1; `None` where nothing matched.

    `counts` are the matched analytes of each type. One that several types know (glucose) counts for the type of the nearest name
    that only one knows, else for each of them.
    """

    report_type: ReportType
    confidence: float | None
    counts: dict[ReportType, int] = field(default_factory=dict)


def _found(text: str) -> tuple[Analyte, ...]:
    """Return the analytes that a line names: the whole of it, or all that is before its value."""
    whole = candidates(text)
    if whole:
        return whole
    words = unmarked(text).split()
    for place, word in enumerate(words):
        if place and _VALUE.fullmatch(word):
            found = candidates(" ".join(words[:place]))
            if found:
                return found
    return ()


def _nearest(places: Sequence[int], place: int) -> int | None:
    """Return the nearest of the places, the one above where two are as near."""
    return min(places, key=lambda other: (abs(other - place), other), default=None)


def _settled(found: Sequence[tuple[Analyte, ...]]) -> list[tuple[Analyte, ...]]:
    """Give names of several panels (glucose) to that of the nearest name of one panel, where it is among them."""
    panels = [{each.panel for each in analytes} for analytes in found]
    sure = [place for place, kinds in enumerate(panels) if len(kinds) == 1]
    settled = []
    for place, analytes in enumerate(found):
        nearest = _nearest(sure, place)
        kinds = set() if nearest is None else panels[nearest] & panels[place]
        settled.append(tuple(each for each in analytes if each.panel in kinds) or analytes)
    return settled


def classify(texts: Sequence[str]) -> Classification:
    """Return the panel with most analytes among lines or names of a page (in its order), by exact names.

    A name that is printed twice counts once. Between equal counts the panel with more names of its own goes first, then the
    order of `ReportType`. Nothing matched: `OTHER`, without a confidence.
    """
    settled = _settled([found for found in map(_found, texts) if found])
    names = {tuple(each.key for each in found): {each.panel for each in found} for found in settled}
    if not names:
        return Classification(ReportType.OTHER, None, {})
    counts = {kind: count for kind in ReportType if (count := sum(kind in panels for panels in names.values()))}
    alone = {kind: sum(panels == {kind} for panels in names.values()) for kind in counts}
    best = max(counts, key=lambda kind: (counts[kind], alone[kind]))
    return Classification(best, counts[best] / len(names), counts)


def _panel_of_row(test: LabTest) -> ReportType | None:
    """Return the panel that a row alone tells, `None` where it may be of blood or urine."""
    near = closest(test.test_name)
    found = candidates(test.test_name) or (() if near is None else (near[0],))
    urine = tuple(each for each in found if each.panel is ReportType.URINALYSIS)
    if not found or len(urine) == len(found):
        return ReportType.URINALYSIS if found else None
    if not urine:
        return None if any(each.key in IN_URINE_TOO for each in found) else found[0].panel
    if test.value.strip() and span_of(test.value) is None:
        return ReportType.URINALYSIS  # a result in words
    unit = normalized_unit(test.unit)
    # strips count cells in a microlitre too, so that unit tells nothing
    fitting = {each.panel for each in found if is_unit_of(unit, each)} if unit not in (None, "/uL") else set()
    return fitting.pop() if len(fitting) == 1 else None


def _may_be_urine_chemistry(test: LabTest) -> bool:
    """Say whether the table knows the name in blood alone, while it is measured in urine too (creatinine)."""
    found = candidates(test.test_name)
    return bool(found) and all(each.key in IN_URINE_TOO for each in found)


def panels_of_rows(tests: Sequence[LabTest], panel: ReportType) -> tuple[ReportType, ...]:
    """Return the panel that each row's name is to be read in: its own, else that of the nearest row that tells one, else `panel`.

    On a page with blood and urine `Glucose` or `WBC` is so read by the rows around it; `Creatinine` by the nearest row of a
    metabolic or liver panel, if the page has one. Rows are in the page's order.
    """
    alone = [_panel_of_row(test) for test in tests]
    sure = [place for place, kind in enumerate(alone) if kind is not None]
    chemistry = [place for place in sure if alone[place] in (ReportType.METABOLIC, ReportType.LIVER)]
    read = []
    for place, test in enumerate(tests):
        nearest = _nearest((chemistry if _may_be_urine_chemistry(test) else []) or sure, place)
        read.append((alone[nearest] if nearest is not None else None) or panel)
    return tuple(read)
