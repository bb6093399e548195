"""Rows that a model made up are dropped, and it is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fewbits.extraction.grounding import grounded
from fewbits.records.extraction import LabReport, LabTest, PatientInfo

PAGE = ("City Lab", "Patient: José  Example | Age: 44", "Sodium | 140 | mmol/L | 135-145", "Potassium | 4.1 | mmol/L")


def row(name: str, value: str) -> LabTest:
    return LabTest(test_name=name, value=value)


def test_what_stands_on_the_page_is_kept_and_the_rest_is_said() -> None:
    told = LabReport(tests=(row("Sodium", "140"), row("Sodium", "141"), row("Glucose", "4.1"), row("POTASSIUM", "4.1")))
    kept, problems = grounded(told, PAGE)
    assert [(test.test_name, test.value) for test in kept.tests] == [("Sodium", "140"), ("POTASSIUM", "4.1")]
    assert problems == (
        "row 2 does not stand on the page with this name and this value",
        "row 3 does not stand on the page with this name and this value",
    )


def test_an_invented_patient_is_no_patient() -> None:
    told = LabReport(lab_name="Other Lab", patient_info=PatientInfo(name="John Doe", age=33, patient_id="Q-771"))
    kept, _ = grounded(told, PAGE)
    assert kept.lab_name is None
    assert kept.patient_info == PatientInfo()
    shown = LabReport(lab_name="City Lab", patient_info=PatientInfo(name="Jose Example", age=44))
    assert grounded(shown, PAGE)[0] == shown


@given(names=st.lists(st.text(min_size=1, max_size=12), max_size=5), lines=st.lists(st.text(max_size=40), max_size=5))
def test_rows_are_only_ever_dropped(names: list[str], lines: list[str]) -> None:
    told = LabReport(tests=tuple(row(name, "1") for name in names))
    kept, problems = grounded(told, lines)
    assert len(kept.tests) + len(problems) == len(told.tests)
    assert set(kept.tests) <= set(told.tests)
