"""How far several readings of one page agree with each other, without knowing the truth.

It says something only about engines that sample: each reading takes another seed. A greedy engine repeats itself, whether it
is right or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from fewbits.extraction.comparison import TOLERANCE, Field, Outcome, field_outcomes, match_tests
from fewbits.records.extraction import LabReport

FIELDS = (Field.NAME, Field.VALUE, Field.UNIT)


def report_agreement(first: LabReport, second: LabReport, *, tolerance: float = TOLERANCE) -> float | None:
    """Return the share of fields (name, value, unit) that agree between two readings of a page, 0..1.

    Tests are paired as in `comparison.match_tests`. A field that only one side has disagrees, so a test without a partner counts
    with each of its fields; one that neither has counts nothing. Both without tests: `None`, there is nothing to agree on; one
    without: 0.
    """
    outcomes = [
        outcome
        for pair in match_tests(first, second, tolerance=tolerance)
        for field, outcome in field_outcomes(pair, tolerance=tolerance).items()
        if field in FIELDS
    ]
    return outcomes.count(Outcome.AGREES) / len(outcomes) if outcomes else None


def page_agreement(runs: Sequence[LabReport], *, tolerance: float = TOLERANCE) -> float | None:
    """Return the mean agreement over all pairs of readings of one page; `None` where no pair has anything to agree on.

    A run that failed takes part as a report without tests.
    """
    found = [report_agreement(first, second, tolerance=tolerance) for first, second in combinations(runs, 2)]
    known = [agreement for agreement in found if agreement is not None]
    return math.fsum(known) / len(known) if known else None
