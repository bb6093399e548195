from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.extraction import metrics as sut
from fewbits.records.extraction import Flag, LabReport, LabTest, PatientInfo, ReferenceRange, ReportType, Sex
from fewbits.records.extraction_metrics import FieldCounts, FieldMetrics

HEMOGLOBIN = LabTest(
    test_name="Hemoglobin", value="13.5", unit="g/dL", reference_range=ReferenceRange(low=13.5, high=17.5), flag=Flag.NORMAL
)
POTASSIUM = LabTest(test_name="Potassium", value="6.9", unit="mmol/L", flag=Flag.CRITICAL_HIGH)
NITRITE = LabTest(test_name="Nitrite", value="Negative", reference_range=ReferenceRange(text="Negative"))


def report(*tests: LabTest, kind: ReportType = ReportType.OTHER) -> LabReport:
    return LabReport(tests=tests, report_type=kind)


def changed(test: LabTest, **fields: object) -> LabTest:
    return msgspec.structs.replace(test, **fields)


def numbers(counts: FieldCounts) -> tuple[int, int, int]:
    return counts.true_positive, counts.false_positive, counts.false_negative


def test_a_perfect_page() -> None:
    truth = report(HEMOGLOBIN, POTASSIUM, NITRITE)
    found = sut.field_level_metrics(truth, truth)
    assert numbers(found.names) == (3, 0, 0)
    assert numbers(found.fields) == (5 + 3 + 3, 0, 0)
    assert found.fields.f1 == found.names.f1 == found.value_accuracy.value == found.critical_flags.recall == 1
    assert (found.unit_accuracy.total, found.range_accuracy.total, found.flag_accuracy.total) == (2, 2, 2)


def test_wrong_missing_and_invented_fields_by_hand() -> None:
    truth = report(HEMOGLOBIN, POTASSIUM)
    predicted = report(changed(HEMOGLOBIN, value="18.5", unit=None), changed(NITRITE, test_name="Nitrile"))
    found = sut.field_level_metrics(predicted, truth)
    # hemoglobin: name, low, high agree; the value differs (fp + fn), the unit is missing (fn); the rest has no partner
    assert numbers(found.fields) == (3, 1 + 3, 2 + 3)
    assert found.fields.precision == pytest.approx(3 / 7)
    assert found.fields.recall == pytest.approx(3 / 8)
    assert found.fields.f1 == pytest.approx(6 / 15)
    assert numbers(found.names) == (1, 1, 1)
    assert (found.value_accuracy.correct, found.value_accuracy.total) == (0, 1)
    assert (found.unit_accuracy.correct, found.unit_accuracy.total) == (0, 1)
    assert (found.range_accuracy.correct, found.range_accuracy.total) == (1, 1)
    assert (found.predicted_tests, found.true_tests, found.matched_tests) == (2, 2, 1)


def test_undefined_is_none_and_never_a_number() -> None:
    nothing = sut.field_level_metrics(report(), report())
    assert numbers(nothing.fields) == numbers(nothing.names) == (0, 0, 0)
    assert (nothing.fields.precision, nothing.fields.recall, nothing.fields.f1, nothing.value_accuracy.value) == (None,) * 4
    missed = sut.field_level_metrics(report(), report(HEMOGLOBIN))
    assert (missed.fields.precision, missed.fields.recall, missed.fields.f1) == (None, 0, 0)
    invented = sut.field_level_metrics(report(HEMOGLOBIN), report())
    assert (invented.fields.precision, invented.fields.recall, invented.fields.f1) == (0, None, 0)


def test_duplicates_do_not_collapse() -> None:
    found = sut.field_level_metrics(report(HEMOGLOBIN), report(HEMOGLOBIN, HEMOGLOBIN))
    assert numbers(found.names) == (1, 0, 1)


def test_critical_flags_count_tests_that_were_not_found_and_the_wrong_direction() -> None:
    truth = report(POTASSIUM, HEMOGLOBIN, changed(HEMOGLOBIN, test_name="Sodium", flag=Flag.CRITICAL_LOW))
    predicted = report(
        changed(HEMOGLOBIN, flag=Flag.CRITICAL_LOW), changed(HEMOGLOBIN, test_name="Sodium", flag=Flag.CRITICAL_HIGH)
    )
    found = sut.field_level_metrics(predicted, truth)
    assert numbers(found.critical_flags) == (0, 2, 2)
    assert (found.critical_flags.recall, found.critical_flags.precision) == (0, 0)
    assert (found.flag_accuracy.correct, found.flag_accuracy.total) == (0, 2)
    mild = sut.field_level_metrics(report(changed(POTASSIUM, flag=Flag.HIGH)), report(POTASSIUM))
    assert numbers(mild.critical_flags) == (0, 0, 1)
    assert numbers(mild.abnormal_flags) == (0, 1, 1)
    assert sut.field_level_metrics(report(NITRITE), report(NITRITE)).flag_accuracy.value is None


def test_patient_laboratory_and_date_are_counted_apart_from_tests() -> None:
    truth = LabReport(
        patient_info=PatientInfo(name="A B", age=40, gender=Sex.MALE),
        lab_name="North",
        report_date="2024-01-02",
        tests=(NITRITE,),
    )
    predicted = LabReport(
        patient_info=PatientInfo(name="a  b", age=41, patient_id="7"), report_date="2024-01-02", tests=(NITRITE,)
    )
    found = sut.field_level_metrics(predicted, truth)
    assert {name: numbers(counts) for name, counts in found.report_fields.items()} == {
        "lab_name": (0, 0, 1),
        "report_date": (1, 0, 0),
        "report_type": (1, 0, 0),
        "patient_name": (1, 0, 0),
        "patient_age": (0, 1, 1),
        "patient_gender": (0, 0, 1),
        "patient_id": (0, 1, 0),
        "patient_date_of_birth": (0, 0, 0),
    }
    assert found.fields.f1 == 1


def test_a_tolerance_and_a_unit_of_the_same_quantity() -> None:
    truth = report(LabTest(test_name="Glucose", value="99", unit="mg/dL"), kind=ReportType.METABOLIC)
    predicted = report(LabTest(test_name="Glucose", value="5.5", unit="mmol/L"), kind=ReportType.METABOLIC)
    strict, loose = (sut.field_level_metrics(predicted, truth, tolerance=tolerance) for tolerance in (1e-9, 0.01))
    assert (strict.value_accuracy.value, loose.value_accuracy.value) == (0, 1)
    assert numbers(loose.fields) == (2, 1, 1)  # the unit is another one all the same


def test_breakdowns_by_panel_and_test_add_up_to_the_whole() -> None:
    odd = LabTest(test_name="Flux Index", value="3")
    pages = [
        (report(HEMOGLOBIN, changed(POTASSIUM, value="7.0")), report(HEMOGLOBIN, POTASSIUM, kind=ReportType.CBC)),
        (report(changed(odd, test_name="Jane Doe")), report(odd, HEMOGLOBIN, kind=ReportType.LIPID)),
    ]
    whole = sut.sum_metrics(sut.field_level_metrics(*page) for page in pages)
    panels, tests = sut.by_panel(pages), sut.by_test(pages)
    assert set(panels) == {"cbc", "metabolic", "lipid"}
    assert set(tests) == {"hemoglobin", "potassium", "flux index", sut.NOT_ON_THE_PAGE}
    assert tests["potassium"].value_accuracy.value == 0
    assert numbers(tests["hemoglobin"].names) == (1, 0, 1)
    for groups in (panels, tests):
        total = sut.sum_metrics(groups.values())
        assert msgspec.structs.replace(total, report_fields=whole.report_fields) == whole


def test_the_sum_is_the_micro_average_and_survives_a_round_trip() -> None:
    pages = [sut.field_level_metrics(report(*[HEMOGLOBIN] * n), report(HEMOGLOBIN, POTASSIUM)) for n in (0, 1, 3)]
    total = sut.sum_metrics(pages)
    assert numbers(total.names) == (2, 2, 4)
    assert total.names.f1 == pytest.approx(4 / 10)
    assert sut.sum_metrics([]).fields.f1 is None
    assert msgspec.json.decode(msgspec.json.encode(total), type=FieldMetrics) == total


pages = st.lists(
    st.sampled_from([HEMOGLOBIN, POTASSIUM, NITRITE, changed(HEMOGLOBIN, value="1"), changed(POTASSIUM, flag=None, unit=None)]),
    max_size=6,
).map(lambda tests: report(*tests))


@settings(max_examples=50)
@given(pages, pages)
def test_swapping_sides_swaps_precision_and_recall(first: LabReport, second: LabReport) -> None:
    there, back = sut.field_level_metrics(first, second), sut.field_level_metrics(second, first)
    for name in ("names", "fields", "abnormal_flags", "critical_flags"):
        one, other = getattr(there, name), getattr(back, name)
        if name in {"names", "fields"}:
            assert (one.precision, one.recall, one.f1) == (other.recall, other.precision, other.f1)
        assert one.f1 is None or min(one.precision or 0, one.recall or 0) <= one.f1 <= max(one.precision or 0, one.recall or 0)
