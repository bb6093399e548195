from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.extraction import comparison as sut
from fewbits.extraction.comparison import Field, Outcome, Pair
from fewbits.extraction.names import analyte_of
from fewbits.records.extraction import LabReport, LabTest, ReferenceRange

GLUCOSE = analyte_of("Glucose", unit="mg/dL")


def row(name: str, value: str = "1", unit: str | None = None, low: float | None = None, high: float | None = None) -> LabTest:
    limits = None if low is None and high is None else ReferenceRange(low=low, high=high)
    return LabTest(test_name=name, value=value, unit=unit, reference_range=limits)


def report(*tests: LabTest) -> LabReport:
    return LabReport(tests=tests)


def values_of(pairs: tuple[Pair, ...]) -> list[tuple[str | None, str | None]]:
    return [tuple(None if test is None else test.value for test in (pair.predicted, pair.truth)) for pair in pairs]  # type: ignore[misc]


def test_tests_are_paired_by_name_whatever_their_order_case_and_punctuation() -> None:
    truth = report(row("Hemoglobin", "13.5"), row("Platelet Count", "250"))
    pairs = sut.match_tests(report(row("platelet  count:", "250"), row("HEMOGLOBIN", "13.5")), truth)
    assert values_of(pairs) == [("13.5", "13.5"), ("250", "250")]


def test_a_synonym_pairs_and_a_longer_name_does_not() -> None:
    truth = report(row("Hemoglobin", "13.5", "g/dL"))
    assert values_of(sut.match_tests(report(row("Hgb", "13.5", "g/dL")), truth)) == [("13.5", "13.5")]
    assert values_of(sut.match_tests(report(row("Hemoglobin A1c", "13.5", "%")), truth)) == [(None, "13.5"), ("13.5", None)]


def test_the_same_name_goes_before_a_synonym() -> None:
    truth = report(row("Hgb", "9"), row("Hemoglobin", "13"))
    pairs = sut.match_tests(report(row("Hemoglobin", "9"), row("Hgb", "13")), truth)
    assert values_of(pairs) == [("13", "9"), ("9", "13")]


def test_duplicates_stay_and_find_the_partner_that_agrees_most() -> None:
    truth = report(row("Glucose", "90", "mg/dL"), row("Glucose", "140", "mg/dL"), row("Glucose", "120", "mg/dL"))
    pairs = sut.match_tests(report(row("Glucose", "120", "mg/dL"), row("Glucose", "90", "mg/dL")), truth)
    assert values_of(pairs) == [("90", "90"), (None, "140"), ("120", "120")]
    more = sut.match_tests(report(*[row("Glucose", "90")] * 3), report(row("Glucose", "90")))
    assert values_of(more) == [("90", "90"), ("90", None), ("90", None)]


def test_the_best_assignment_is_found_where_a_greedy_one_is_not() -> None:
    # by themselves the first of both agree most (3 fields); together the crossed pairs do (2 + 2)
    truth = report(row("X", "1", "mg/dL", 1), row("X", "1", "g/L", 2))
    predicted = report(row("X", "1", "mg/dL", 2), row("X", "2", "mg/dL", 1))
    assert values_of(sut.match_tests(predicted, truth)) == [("2", "1"), ("1", "1")]


def test_page_order_breaks_ties() -> None:
    truth = report(*(row("Culture", str(value)) for value in (1, 2, 3)))
    predicted = report(*(row("Culture", str(value)) for value in (7, 8, 9, 10)))
    assert values_of(sut.match_tests(predicted, truth)) == [("7", "1"), ("8", "2"), ("9", "3"), ("10", None)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("13.5", "13.50", True),
        ("13.5", "13.6", False),
        ("1,200", "1200", True),
        ("<0.1", "0.1", False),
        ("<0.1", "< 0.10", True),
        ("<0.1", ">0.1", False),
        ("0", "0.0", True),
        ("0", "0.0000001", False),
        ("Negative", "NEGATIVE", True),
        ("Negative", "Positive", False),
        ("0-2", "0 – 2", True),  # noqa: RUF001
        ("1+", "2+", False),
        ("5", "Five", False),
    ],
)
def test_values_agree_as_printed(first: str, second: str, same: bool) -> None:
    assert sut.values_agree(row("X", first), row("X", second), None) is same
    assert sut.values_agree(row("X", second), row("X", first), None) is same


def test_a_tolerance_is_relative_and_zero_only_equals_zero() -> None:
    assert sut.values_agree(row("X", "100"), row("X", "104"), None, tolerance=0.05)
    assert not sut.values_agree(row("X", "100"), row("X", "106"), None, tolerance=0.05)
    assert not sut.values_agree(row("X", "0"), row("X", "0.0001"), None, tolerance=0.99)
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            sut.match_tests(report(), report(), tolerance=bad)


def test_values_agree_in_another_unit_of_the_analyte_only() -> None:
    mmol, mg = row("Glucose", "5.5", "mmol/L"), row("Glucose", "99", "mg/dL")
    assert GLUCOSE is not None
    assert sut.values_agree(mmol, mg, GLUCOSE, tolerance=0.002)
    assert not sut.values_agree(mmol, mg, GLUCOSE)  # 99.09 is not 99
    assert not sut.values_agree(mmol, mg, None, tolerance=0.002)
    assert not sut.values_agree(row("Glucose", "5.5", None), mg, GLUCOSE, tolerance=0.002)
    assert not sut.values_agree(row("Glucose", "5.5", "furlong"), mg, GLUCOSE, tolerance=0.002)
    assert not sut.values_agree(row("Glucose", "5.6", "mmol/L"), mg, GLUCOSE, tolerance=0.002)
    assert not sut.units_agree("mmol/L", "mg/dL")


def test_units_agree_by_their_spelling() -> None:
    assert sut.units_agree("MG/DL", "mg/dL")
    assert not sut.units_agree("mg/dL", "mg/L")
    assert sut.units_agree("Furlong", "furlong")
    assert not sut.units_agree("furlong", "fathom")
    assert not sut.units_agree("furlong", "mg/dL")


def test_each_field_has_one_outcome_and_absent_fields_none() -> None:
    truth = row("Sodium", "140", "mmol/L", 136, 145)
    predicted = LabTest(test_name="Sodium", value="141", reference_range=ReferenceRange(low=136, text="Normal"))
    assert sut.field_outcomes(Pair(predicted, truth, None)) == {
        Field.NAME: Outcome.AGREES,
        Field.VALUE: Outcome.DIFFERS,
        Field.UNIT: Outcome.MISSING,
        Field.RANGE_LOW: Outcome.AGREES,
        Field.RANGE_HIGH: Outcome.MISSING,
    }
    words = LabTest(test_name="Nitrite", value=" ", reference_range=ReferenceRange(text="negative"))
    assert sut.field_outcomes(Pair(words, None, None)) == {Field.NAME: Outcome.INVENTED, Field.RANGE_TEXT: Outcome.INVENTED}
    assert set(sut.field_outcomes(Pair(None, truth, None)).values()) == {Outcome.MISSING}


rows = st.builds(
    row,
    st.sampled_from(["Glucose", "glucose", "Hgb", "Hemoglobin", "Sodium", "Culture", "---"]),
    st.sampled_from(["1", "1.0", "2", "<1", "Negative", ""]),
    st.sampled_from([None, "mg/dL", "g/dL", "mmol/L", "odd"]),
    st.sampled_from([None, 1.0, 2.0]),
    st.sampled_from([None, 3.0]),
)
reports = st.lists(rows, max_size=7).map(lambda found: report(*found))


@settings(max_examples=40)
@given(reports, reports)
def test_every_test_is_in_exactly_one_pair(predicted: LabReport, truth: LabReport) -> None:
    pairs = sut.match_tests(predicted, truth)
    assert [pair.truth for pair in pairs if pair.truth is not None] == list(truth.tests)
    mine = sorted(id(pair.predicted) for pair in pairs if pair.predicted is not None)
    assert mine == sorted(id(test) for test in predicted.tests)
    assert pairs == sut.match_tests(predicted, truth)


@settings(max_examples=40)
@given(reports)
def test_a_report_agrees_with_itself(truth: LabReport) -> None:
    named = report(*(test for test in truth.tests if test.test_name != "---"))
    for pair in sut.match_tests(named, named):
        assert pair.predicted is not None
        assert set(sut.field_outcomes(pair).values()) == {Outcome.AGREES}
