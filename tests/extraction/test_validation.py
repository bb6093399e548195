"""Issues: each kind is found where it is, and nowhere else; values of patients are not in them."""

from __future__ import annotations

import pytest

from fewbits.extraction.validation import find_issues
from fewbits.extraction.values import parse_range
from fewbits.records.extraction import IssueKind, LabReport, LabTest, PatientInfo, ReferenceRange, ReportType, Sex


def row(name: str, value: str, unit: str | None = None, printed: str | None = None, mark: str | None = None) -> LabTest:
    """A row as a page prints it."""
    return LabTest(
        test_name=name,
        value=value,
        unit=unit,
        reference_range=parse_range(printed) if printed is not None else None,
        printed_flag=mark,
    )


def kinds(*tests: LabTest, panel: ReportType = ReportType.OTHER, sex: Sex | None = None) -> list[tuple[str, int | None]]:
    """Kinds and rows of the issues."""
    report = LabReport(report_type=panel, tests=tests, patient_info=PatientInfo(gender=sex) if sex is not None else None)
    return [(issue.kind.value, issue.row) for issue in find_issues(report)]


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        (row("Glucose", ""), IssueKind.EMPTY_VALUE),
        (row("Glucose", "  "), IssueKind.EMPTY_VALUE),
        (row("Glucose", "-5", "mg/dL"), IssueKind.NEGATIVE_VALUE),
        (row("Foo", "-5"), IssueKind.NEGATIVE_VALUE),
        (row("Hemoglobin", "135", "g/dL"), IssueKind.IMPLAUSIBLE_VALUE),
        (row("Potassium", "42", "mmol/L"), IssueKind.IMPLAUSIBLE_VALUE),
        (row("pH", "60", None), IssueKind.IMPLAUSIBLE_VALUE),
        (row("Hematocrit", "420", "%"), IssueKind.IMPLAUSIBLE_VALUE),
        (row("Glucose", "90", "furlong"), IssueKind.UNKNOWN_UNIT),
        (row("Glucose", "90", "U/L"), IssueKind.UNIT_OF_ANOTHER_QUANTITY),
        (row("Hemoglobin", "14", "%"), IssueKind.UNIT_OF_ANOTHER_QUANTITY),
        (
            LabTest(test_name="Glucose", value="90", unit="mg/dL", reference_range=ReferenceRange(low=100, high=70)),
            IssueKind.RANGE_REVERSED,
        ),
        (row("Glucose", "90", "mg/dL", "70-100", "H"), IssueKind.FLAG_DISAGREES),
        (row("Glucose", "120", "mg/dL", "70-100", "L*"), IssueKind.FLAG_DISAGREES),
        (row("Glucose", "120", "mg/dL", "70-100", "Normal"), IssueKind.FLAG_DISAGREES),
    ],
)
def test_each_kind(test: LabTest, kind: IssueKind) -> None:
    assert kinds(test) == [(kind.value, 0)]


@pytest.mark.parametrize(
    "test",
    [
        row("Glucose", "90", "mg/dL", "70-100"),
        row("Glucose", "120", "mg/dL", "70-100", "H"),
        row("Glucose", "600", "mg/dL", "70-100", "HH"),
        row("Glucose", "120", "mg/dL", "70-100", "*"),
        row("Glucose", "120", "mg/dL", None, "L"),
        row("Anion Gap", "-2", "mmol/L"),
        row("Nitrite", "Positive", None, "Negative", "A"),
        row("Urine Protein", "30", "mg/dL", "Negative", "A"),
        row("TSH", "<0.01", "mIU/L", "0.4-4.0", "L"),
        row("Platelets", "250", "K/uL"),
        row("Foo", "12", None),
        row("Hemoglobin", "12.5", "g/dL", "M: 13-17 F: 12-15", "L"),
    ],
)
def test_usual_rows_have_none(test: LabTest) -> None:
    assert kinds(test) == []


def test_the_sex_decides_whether_a_mark_disagrees() -> None:
    test = row("Hemoglobin", "12.5", "g/dL", "M: 13-17 F: 12-15", "L")
    assert kinds(test, sex=Sex.MALE) == []
    assert kinds(test, sex=Sex.FEMALE) == [("FLAG_DISAGREES", 0)]


def test_duplicates_are_said_and_kept() -> None:
    """The same name in another unit is another row (percent and count)."""
    assert kinds(row("Glucose", "90", "mg/dL"), row("GLUCOSE ", "91", "MG/DL")) == [("DUPLICATE_TEST", 1)]
    assert kinds(row("Neutrophils", "60", "%"), row("Neutrophils", "4.2", "K/uL")) == []
    blood_and_urine = (row("MCV", "90", "fL"), row("WBC", "7"), row("Nitrite", "Negative"), row("WBC", "2"))
    assert kinds(*blood_and_urine) == []


def test_an_empty_report_has_one_issue() -> None:
    assert kinds() == [("NO_TESTS", None)]


def test_values_are_not_repeated() -> None:
    """Issues go to logs: no value of a patient is in them."""
    tests = (
        row("Hemoglobin", "135.77", "g/dL"),
        row("Glucose", "-5.77", "mg/dL"),
        row("Sodium", "155.77", "mmol/L", "136-145", "L"),
    )
    assert not any("5.77" in issue.detail for issue in find_issues(LabReport(tests=tests)))
