"""One page's answer scored: passed / total is the page's field F1."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.codec import encode_canonical
from fewbits.extraction.metrics import field_level_metrics
from fewbits.records.base import Bucket, TrialStatus
from fewbits.records.extraction import ErrorKind, LabReport, LabTest, PageExtraction, ReferenceRange
from fewbits.records.task import ExtractionCheck, Task, task_digest
from fewbits.workloads.extraction.score import extraction_result
from fewbits.workloads.score import score_trial

TRUTH = LabReport(
    tests=(
        LabTest(test_name="Sodium", value="140", unit="mmol/L", reference_range=ReferenceRange(low=135, high=145)),
        LabTest(test_name="Potassium", value="4.1", unit="mmol/L"),
    )
)


def answer(report: LabReport, **changes: object) -> str:
    page = PageExtraction(engine="known", success=True, report=report, total_time_seconds=0.1)
    return encode_canonical(msgspec.structs.replace(page, **changes)).decode()


def task(truth: LabReport | None = TRUTH) -> Task:
    return Task(id="page-000001", bucket=Bucket.EXTRACTION, tier=1, prompt="Read.", checks=(ExtractionCheck(truth=truth),))


def test_the_truth_scores_one() -> None:
    results, score = score_trial(task(), TrialStatus.OK, answer(TRUTH))
    assert score == 1.0
    assert (results[0].passed, results[0].total, results[0].detail) == (16, 16, "")  # 8 fields, counted twice


def test_passed_of_total_is_the_f1_of_the_fields() -> None:
    wrong = LabReport(tests=(msgspec.structs.replace(TRUTH.tests[0], value="104"), LabTest(test_name="Chloride", value="99")))
    counts = field_level_metrics(wrong, TRUTH).fields
    result = extraction_result(ExtractionCheck(truth=TRUTH), answer(wrong))
    assert result.passed / result.total == pytest.approx(counts.f1)
    assert result.detail == f"{counts.false_positive} fields wrong or invented, {counts.false_negative} wrong or missing"


def test_a_failure_scores_nothing_whatever_it_left_behind() -> None:
    failed = answer(TRUTH, success=False, error_kind=ErrorKind.PARSE_FAILED, error="no JSON")
    results, score = score_trial(task(), TrialStatus.OK, failed)
    assert score == 0.0
    assert results[0].detail == "PARSE_FAILED: no JSON"
    assert score_trial(task(), TrialStatus.CRASHED, answer(TRUTH))[1] == 0.0


def test_without_a_truth_success_is_all_that_can_be_asked() -> None:
    assert score_trial(task(None), TrialStatus.OK, answer(TRUTH))[1] == 1.0
    assert score_trial(task(None), TrialStatus.OK, answer(TRUTH, success=False, error_kind=ErrorKind.NO_TESTS))[1] == 0.0


@given(text=st.text(max_size=200) | st.just("[" * 5000) | st.just('{"schema_version": "fewbits.extraction.v9"}'))
def test_any_other_text_scores_nothing(text: str) -> None:
    assert extraction_result(ExtractionCheck(truth=TRUTH), text).passed == 0


def test_details_hold_no_text_of_the_page() -> None:
    other = LabReport(tests=(LabTest(test_name="Ada Example's secret", value="7"),))
    assert "Ada" not in extraction_result(ExtractionCheck(truth=TRUTH), answer(other)).detail


def test_the_truth_is_part_of_what_a_task_asks() -> None:
    changed = LabReport(tests=TRUTH.tests[:1])
    assert task_digest(task()) != task_digest(task(changed))
