from __future__ import annotations

import pytest

from fewbits.extraction import consistency as sut
from fewbits.records.extraction import LabReport, LabTest

A = LabTest(test_name="Sodium", value="140", unit="mmol/L")
B = LabTest(test_name="Culture", value="Negative")


def report(*tests: LabTest) -> LabReport:
    return LabReport(tests=tests)


def test_agreement_of_two_readings_by_hand() -> None:
    assert sut.report_agreement(report(A, B), report(B, A)) == 1
    # name and unit agree, the value does not
    assert sut.report_agreement(report(A), report(LabTest(test_name="Sodium", value="141", unit="mmol/L"))) == pytest.approx(
        2 / 3
    )
    # a test that one side lacks costs each of its fields
    assert sut.report_agreement(report(A, B), report(A)) == pytest.approx(3 / 5)


def test_both_empty_say_nothing_and_one_empty_is_no_agreement() -> None:
    assert sut.report_agreement(report(), report()) is None
    assert sut.report_agreement(report(A), report()) == sut.report_agreement(report(), report(A)) == 0


def test_a_tolerance_is_passed_on() -> None:
    near = report(LabTest(test_name="Sodium", value="141", unit="mmol/L"))
    assert sut.report_agreement(report(A), near, tolerance=0.01) == 1


def test_a_page_is_the_mean_over_pairs_of_runs() -> None:
    assert sut.page_agreement([report(A), report(A), report()]) == pytest.approx(1 / 3)
    assert sut.page_agreement([report(), report(), report()]) is None
    assert sut.page_agreement([report(A), report(), report()]) == 0  # the pair of empty ones says nothing
    assert sut.page_agreement([report(A)]) is None
