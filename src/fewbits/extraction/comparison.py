"""Tests of two reports paired one to one, and whether their fields agree.

The *fields* of a test are name, value, unit, and of its range the low end, the high end, or the text where the range has no
number. What is blank or `None` is no field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np

from fewbits.extraction import names, units, values
from fewbits.extraction.analyte import Analyte
from fewbits.extraction.analytes import analyte_table
from fewbits.records.extraction import LabReport, LabTest

TOLERANCE = 1e-9
"""Relative; equal as printed: it only absorbs the rounding of 64-bit numbers."""


class Field(StrEnum):
    """The fields of a test."""

    NAME = "name"
    VALUE = "value"
    UNIT = "unit"
    RANGE_LOW = "range_low"
    RANGE_HIGH = "range_high"
    RANGE_TEXT = "range_text"


# the same few texts are read again for every pair of duplicates, and a model that repeats itself makes hundreds of them
_number_of = lru_cache(maxsize=4096)(values.parse_number)
_unit_of = lru_cache(maxsize=4096)(units.normalized_unit)
_analyte_of = lru_cache(maxsize=4096)(names.analyte_of)

RANGE_FIELDS = (Field.RANGE_LOW, Field.RANGE_HIGH, Field.RANGE_TEXT)


class Outcome(StrEnum):
    """How a field of the prediction lies to the same field of the truth."""

    AGREES = "agrees"
    DIFFERS = "differs"
    MISSING = "missing"
    """In the truth only."""
    INVENTED = "invented"
    """In the prediction only."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A predicted and a true test that stand for each other, or one of them alone (the other is `None`).

    `analyte` is the truth's, else the prediction's; `None` where the table does not know the name.
    """

    predicted: LabTest | None
    truth: LabTest | None
    analyte: Analyte | None


def checked_tolerance(tolerance: float) -> float:
    """Return the relative tolerance; raises `ValueError` unless 0 <= tolerance < 1 (at 1, zero would equal any number)."""
    if not 0 <= tolerance < 1:
        msg = f"a relative tolerance of {tolerance} is not usable: give one of 0 or more, below 1 (0.01 is one percent)"
        raise ValueError(msg)
    return tolerance


def analyte_of_test(test: LabTest, report: LabReport) -> Analyte | None:
    """Return the analyte that the test is marked with, else that of its printed name, unit and the report's panel."""
    known = None if test.analyte is None else analyte_table().get(test.analyte)
    return known or _analyte_of(test.test_name, panel=report.report_type, unit=test.unit)


def match_tests(predicted: LabReport, truth: LabReport, *, tolerance: float = TOLERANCE) -> tuple[Pair, ...]:
    """Pair the tests of two reports one to one, duplicates kept: in the truth's order, then predictions without a partner.

    First tests of the same normalized name, then those left of the same analyte. Among tests of one name, as many as possible
    are paired so that the most fields agree; where that leaves a choice, in page order. Raises `ValueError` on a tolerance
    outside of 0..1.
    """
    checked_tolerance(tolerance)
    predictions = [(test, analyte_of_test(test, predicted)) for test in predicted.tests]
    truths = [(test, analyte_of_test(test, truth)) for test in truth.tests]
    partner: dict[int, int] = {}  # place in the truth -> place in the prediction
    for key in (_name_key, _analyte_key):
        taken = set(partner.values())
        left = _by_key([place for place in range(len(predictions)) if place not in taken], predictions, key)
        for name, rows in _by_key([place for place in range(len(truths)) if place not in partner], truths, key).items():
            columns = left.get(name, [])
            agreeing = [[_agreeing(predictions[c][0], *truths[r], tolerance) for c in columns] for r in rows]
            partner.update({rows[i]: columns[j] for i, j in _assigned(agreeing)})
    pairs = [
        Pair(predictions[partner[place]][0], test, analyte or predictions[partner[place]][1])
        if place in partner
        else Pair(None, test, analyte)
        for place, (test, analyte) in enumerate(truths)
    ]
    used = set(partner.values())
    return (*pairs, *(Pair(test, None, analyte) for place, (test, analyte) in enumerate(predictions) if place not in used))


_Known = tuple[LabTest, Analyte | None]


def _name_key(known: _Known) -> str | None:
    return names.normalized(known[0].test_name) or None


def _analyte_key(known: _Known) -> str | None:
    return None if known[1] is None else known[1].key


def _by_key(places: Sequence[int], tests: Sequence[_Known], key: Callable[[_Known], str | None]) -> dict[str, list[int]]:
    """Group places by key, in page order; tests without a key are left out."""
    groups: dict[str, list[int]] = {}
    for place in places:
        found = key(tests[place])
        if found is not None:
            groups.setdefault(found, []).append(place)
    return groups


def _agreeing(predicted: LabTest, truth: LabTest, analyte: Analyte | None, tolerance: float) -> int:
    outcomes = field_outcomes(Pair(predicted, truth, analyte), tolerance=tolerance)
    return sum(outcome is Outcome.AGREES for outcome in outcomes.values())


def _assigned(agreeing: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return (row, column) pairs of int[rows, columns], as many as possible, with the largest sum.

    Of equal sums that with the least squared distance in rank, which keeps the page's order.
    """
    if not agreeing or not agreeing[0]:
        return []
    if len(agreeing) == len(agreeing[0]) == 1:
        return [(0, 0)]
    from scipy.optimize import linear_sum_assignment

    gain = np.array(agreeing, dtype=np.float64)
    rows, columns = np.indices(gain.shape)
    largest = max(gain.shape)
    cost = (rows - columns) ** 2.0 - gain * float(largest**3)  # all distances together stay below one agreeing field
    chosen = linear_sum_assignment(cost)
    return [(int(row), int(column)) for row, column in zip(*chosen, strict=True)]


def field_outcomes(pair: Pair, *, tolerance: float = TOLERANCE) -> dict[Field, Outcome]:
    """Compare each field of a pair that at least one side has; fields that neither has are absent.

    The name of a pair agrees, since that is what paired it. For the others see `values_agree`, `units_agree`, `ranges`.
    """
    predicted, truth = pair.predicted, pair.truth
    if predicted is None or truth is None:
        alone = truth if predicted is None else predicted
        side = Outcome.MISSING if predicted is None else Outcome.INVENTED
        return {} if alone is None else dict.fromkeys(_present(alone), side)
    mine, theirs = _present(predicted), _present(truth)
    outcomes = {}
    for field in Field:
        if field in mine and field in theirs:
            agrees = _field_agrees(field, predicted, truth, pair.analyte, tolerance)
            outcomes[field] = Outcome.AGREES if agrees else Outcome.DIFFERS
        elif field in mine or field in theirs:
            outcomes[field] = Outcome.INVENTED if field in mine else Outcome.MISSING
    return outcomes


def _present(test: LabTest) -> tuple[Field, ...]:
    """Return the fields that a test has."""
    limits = test.reference_range
    found = [Field.NAME]
    if test.value.strip():
        found.append(Field.VALUE)
    if test.unit is not None and test.unit.strip():
        found.append(Field.UNIT)
    if limits is None:
        return tuple(found)
    ends = [field for field, end in ((Field.RANGE_LOW, limits.low), (Field.RANGE_HIGH, limits.high)) if end is not None]
    if not ends and limits.text is not None and limits.text.strip():
        ends = [Field.RANGE_TEXT]
    return (*found, *ends)


def _field_agrees(field: Field, predicted: LabTest, truth: LabTest, analyte: Analyte | None, tolerance: float) -> bool:
    """Compare a field that both tests have."""
    if field is Field.VALUE:
        return values_agree(predicted, truth, analyte, tolerance=tolerance)
    if field is Field.UNIT:
        return units_agree(predicted.unit, truth.unit)
    if field is Field.NAME or predicted.reference_range is None or truth.reference_range is None:
        return field is Field.NAME
    mine, theirs = predicted.reference_range, truth.reference_range
    if field is Field.RANGE_TEXT:
        return _same_words(mine.text or "", theirs.text or "")
    first, second = (mine.low, theirs.low) if field is Field.RANGE_LOW else (mine.high, theirs.high)
    return (
        first is not None
        and second is not None
        and _same_quantity((first, predicted.unit), (second, truth.unit), analyte, tolerance)
    )


def values_agree(predicted: LabTest, truth: LabTest, analyte: Analyte | None, *, tolerance: float = TOLERANCE) -> bool:
    """Say whether two printed values are the same result; symmetric.

    Numbers: the same comparator, and within `tolerance` of the larger one (so zero only equals zero), as printed or, where the
    analyte and both units are known, after conversion into the analyte's unit. A wrong unit alone is the unit's mistake, not the
    value's. Words: equal apart from case and spaces. A number never equals a word.
    """
    first, second = _number_of(predicted.value), _number_of(truth.value)
    if first is None or second is None:
        return first is second and _same_words(values.unmarked(predicted.value), values.unmarked(truth.value))
    same = _same_quantity((first.value, predicted.unit), (second.value, truth.unit), analyte, tolerance)
    return first.comparator == second.comparator and same


def units_agree(first: str | None, second: str | None) -> bool:
    """Say whether two units are spellings of one unit (`units.normalized_unit`); unknown units: equal apart from case and spaces.

    Convertible units are different units: a page prints one of them.
    """
    known = _unit_of(first), _unit_of(second)
    if known[0] is not None or known[1] is not None:
        return known[0] == known[1]
    return _same_words((first or "").replace(" ", ""), (second or "").replace(" ", ""))


def _same_quantity(
    first: tuple[float, str | None], second: tuple[float, str | None], analyte: Analyte | None, tolerance: float
) -> bool:
    """Compare (number, unit) as printed, then in the analyte's unit."""
    if math.isclose(first[0], second[0], rel_tol=tolerance):
        return True
    known = _unit_of(first[1]), _unit_of(second[1])
    if analyte is None or None in known or known[0] == known[1]:
        return False
    mine, theirs = units.convert(*first, analyte), units.convert(*second, analyte)
    return mine is not None and theirs is not None and math.isclose(mine, theirs, rel_tol=tolerance)


def same_text(first: str, second: str) -> bool:
    """Say whether two texts are equal apart from case and the width of spaces."""
    return " ".join(first.casefold().split()) == " ".join(second.casefold().split())


def _same_words(first: str, second: str) -> bool:
    """As `same_text`, with any dash and any spaces around dashes and slashes."""
    return same_text(*(_tightened(text) for text in (first, second)))


def _tightened(text: str) -> str:
    for sign in "–—−‐":  # noqa: RUF001 - the dashes that pages print
        text = text.replace(sign, "-")
    for sign in "-/":
        text = sign.join(piece.strip() for piece in text.split(sign))
    return text
