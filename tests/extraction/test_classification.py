"""Which panel: the one with most of the page's tests, with a measured share, or none."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.analytes import ANALYTES
from fewbits.extraction.classification import Classification, classify, panels_of_rows
from fewbits.extraction.flags import flag_report
from fewbits.records.extraction import LabReport, LabTest, ReportType

LINES = {
    ReportType.CBC: ["WBC 7.2 K/uL 4.0-11.0", "RBC 4.8", "Hemoglobin 14.1 g/dL", "Platelet Count 250"],
    ReportType.METABOLIC: ["Glucose 90 mg/dL", "BUN 14", "Creatinine 0.9", "Sodium 140", "Potassium 4.1"],
    ReportType.LIPID: ["Total Cholesterol <200", "HDL Cholesterol 50", "Triglycerides 120"],
    ReportType.THYROID: ["TSH 2.1 mIU/L", "Free T4 1.2 ng/dL"],
    ReportType.LIVER: ["ALT 20 U/L", "AST 22 U/L", "Albumin 4.1", "Total Bilirubin 0.7"],
    ReportType.URINALYSIS: [
        "Color Yellow",
        "pH 6.0",
        "Glucose Negative",
        "Protein Trace",
        "Nitrite Negative",
        "WBC 0-2 /hpf",
        "RBC 0-2 /hpf",
    ],
}


@pytest.mark.parametrize("panel", LINES)
def test_lines_of_a_panel(panel: ReportType) -> None:
    found = classify(["City Hospital", "Patient: X", *LINES[panel], "Page 1 of 1"])
    assert found.report_type is panel
    assert found.confidence is not None
    assert found.confidence > 0.8


def test_nothing_that_is_known() -> None:
    assert classify(["a photo", "of a cat", "", "12"]) == Classification(ReportType.OTHER, None, {})
    assert classify([]) == Classification(ReportType.OTHER, None, {})


def test_confidence_is_a_share() -> None:
    found = classify(["ALT", "AST", "Sodium", "ALT"])
    assert found == Classification(ReportType.LIVER, 2 / 3, {ReportType.METABOLIC: 1, ReportType.LIVER: 2})


def test_words_of_sentences_are_no_tests() -> None:
    """`Hemoglobin electrophoresis` is not hemoglobin, nor is advice about glucose a glucose."""
    assert classify(["Hemoglobin electrophoresis 12", "Please repeat the glucose in 3 weeks"]).confidence is None


@given(st.sampled_from(list(LINES)), st.randoms())
def test_the_order_of_lines_changes_nothing(panel: ReportType, random: Random) -> None:
    lines = LINES[panel] * 2
    random.shuffle(lines)
    assert classify(lines) == classify(LINES[panel])


@pytest.mark.parametrize("panel", LINES)
def test_all_names_of_a_panel_lead_to_it(panel: ReportType) -> None:
    assert classify([each.name for each in ANALYTES if each.panel is panel]).report_type is panel


MIXED = [
    ("Glucose", "95", "mg/dL"),
    ("BUN", "14", "mg/dL"),
    ("Creatinine", "0.9", "mg/dL"),
    ("CO2", "25", "mmol/L"),
    ("eGFR", "90", "mL/min/1.73m2"),
    ("Calcium", "9.4", "mg/dL"),
    ("Color", "Yellow", None),
    ("Glucose", "100", "mg/dL"),
    ("Protein", "Negative", None),
    ("WBC", "0-2", None),
    ("Specific Gravity", "1.020", None),
]


@pytest.mark.parametrize("panel", [ReportType.METABOLIC, ReportType.URINALYSIS, ReportType.OTHER])
def test_rows_of_a_page_with_blood_and_urine(panel: ReportType) -> None:
    """Ambiguous names are read by the rows around them, whatever the page as a whole was taken for."""
    tests = tuple(LabTest(test_name=name, value=value, unit=unit) for name, value, unit in MIXED)
    assert panels_of_rows(tests, panel) == (ReportType.METABOLIC,) * 6 + (ReportType.URINALYSIS,) * 5
    keys = [test.analyte for test in flag_report(LabReport(report_type=panel, tests=tests)).tests]
    assert (keys[0], keys[2], keys[5], keys[7]) == ("glucose", "creatinine", "calcium", "urine_glucose")


def test_rows_that_tell_nothing_take_the_panel_of_the_page() -> None:
    tests = (LabTest(test_name="Glucose", value="95", unit="mg/dL"), LabTest(test_name="Foo", value="1"))
    assert panels_of_rows(tests, ReportType.URINALYSIS) == (ReportType.URINALYSIS,) * 2
    assert panels_of_rows((), ReportType.CBC) == ()
