"""The stages of a page, with an engine whose answers are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from fewbits.core.codec import encode_canonical
from fewbits.core.errors import SpecError
from fewbits.records.extraction import (
    ErrorKind,
    Flag,
    IssueKind,
    LabReport,
    LabTest,
    PatientInfo,
    ReferenceRange,
    Sex,
    StageName,
)
from fewbits.runtimes.extraction.pipeline import EngineReport, PageSource, Pixels, StageTimer, extract_page, unreadable_page

PAGE = np.full((20, 30, 3), 255, dtype=np.uint8)
PATIENT = PatientInfo(name="Ada Example", age=50, gender=Sex.FEMALE, patient_id="P-1", date_of_birth="1970-01-01")


class KnownEngine:
    name = "known"

    def __init__(self, report: EngineReport) -> None:
        self.report = report

    def reseed(self, seed: int) -> None:
        pass

    def extract(self, pixels: Pixels, timer: StageTimer) -> EngineReport:
        timer.begin()
        timer.end(StageName.EXTRACT, confidence=0.5, confidence_meaning="made up for a test")
        return self.report


def ticking() -> Callable[[], float]:
    counter = itertools.count()
    return lambda: float(next(counter))


def hemoglobin(number: str = "13.5") -> LabTest:
    return LabTest(test_name="Hemoglobin", value=number, unit="g/dL", reference_range=ReferenceRange(low=12.0, high=16.0))


def test_a_good_report_passes_every_stage_and_gets_its_flags() -> None:
    report = LabReport(patient_info=PATIENT, tests=(hemoglobin(), hemoglobin("17.0")))
    found = extract_page(KnownEngine(EngineReport(report)), PAGE, PageSource(2, 3, ("page 2 of 3",)), clock=ticking())
    assert found.success
    assert found.error_kind is None
    assert [stage.stage_name for stage in found.stages] == [StageName.EXTRACT, StageName.VALIDATE, StageName.FLAG]
    assert all(stage.timing_seconds == 1.0 for stage in found.stages)  # the clock ticks once per read
    assert [test.flag for test in found.report.tests] == [Flag.NORMAL, Flag.HIGH]
    assert (found.flagged_count, found.critical_count) == (1, 0)
    assert (found.page, found.pages, found.notes) == (2, 3, ("page 2 of 3",))
    assert IssueKind.DUPLICATE_TEST in {issue.kind for issue in found.issues}  # kept, and said
    assert len(found.report.tests) == 2


def test_confidences_are_measured() -> None:
    report = LabReport(tests=(hemoglobin(), LabTest(test_name="Mystery factor", value="7")))
    found = extract_page(KnownEngine(EngineReport(report)), PAGE, PageSource(), clock=ticking())
    by_stage = {stage.stage_name: stage.confidence for stage in found.stages}
    assert by_stage[StageName.FLAG] == 0.5  # one of two has a range
    assert by_stage[StageName.VALIDATE] == 1.0


def test_a_report_without_tests_is_a_failure() -> None:
    found = extract_page(KnownEngine(EngineReport(LabReport())), PAGE, PageSource(), clock=ticking())
    assert not found.success
    assert found.error_kind is ErrorKind.NO_TESTS


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_an_engine_that_failed_fails_the_page(kind: ErrorKind) -> None:
    failed = EngineReport(LabReport(tests=(hemoglobin(),)), error_kind=kind, error="it failed")
    found = extract_page(KnownEngine(failed), PAGE, PageSource(), clock=ticking())
    assert (found.success, found.error_kind, found.error) == (False, kind, "it failed")
    assert [stage.stage_name for stage in found.stages] == [StageName.EXTRACT]  # nothing is flagged that nobody read


def test_redacted_answers_hold_nothing_about_the_patient() -> None:
    report = LabReport(patient_info=PATIENT, tests=(hemoglobin(),), metadata={"accession": "X-99"})
    found = extract_page(KnownEngine(EngineReport(report)), PAGE, PageSource(), clock=ticking(), redact=True)
    text = encode_canonical(found).decode()
    assert not any(word in text for word in ("Ada", "P-1", "1970", "X-99"))
    assert found.report.patient_info == PatientInfo(gender=Sex.FEMALE)  # flags rest on it
    assert found.report.tests[0].flag is Flag.NORMAL


def test_a_page_that_cannot_be_opened_is_a_failed_page_that_names_no_file() -> None:
    error = SpecError.single("/home/ada/ada-example.png", "the picture is damaged or cut off", "fetch it again")
    found = unreadable_page("ocr", PageSource(3, 4), error, 0.25)
    assert (found.success, found.error_kind, found.page, found.pages) == (False, ErrorKind.UNREADABLE_INPUT, 3, 4)
    assert found.error == "the picture is damaged or cut off (fetch it again)"
    assert "ada-example" not in encode_canonical(found).decode()
