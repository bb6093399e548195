"""Extraction blocks of three engines over twelve small pages, made by the functions that make real ones; the truth is known.

`ocr` reads everything but one value; `ocr-int8` reads some numbers wrongly and fails on one page; `vision-nf4` was not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fewbits.analysis.extraction_benchmark import aggregate
from fewbits.analysis.extraction_rates import (
    differences_by_level,
    extraction_difference,
    extraction_rates,
    grouped_rates,
    rates_by_level,
    self_consistency,
)
from fewbits.extraction.metrics import by_panel, by_test, field_level_metrics
from fewbits.records.extraction import Flag, LabReport, LabTest, ReferenceRange, ReportType
from fewbits.records.extraction_metrics import ExtractionAggregate, MeasuredRun, PageMetrics, SelfConsistency
from fewbits.records.extraction_run import RowExtraction

REFERENCE, SMALLER, ABSENT = "ocr", "ocr-int8", "vision-nf4"
LEVELS = ("clean", "photo", "scan")
PAGES = 12


def lab_test(name: str, value: str, unit: str, low: float, high: float, flag: Flag = Flag.NORMAL) -> LabTest:
    return LabTest(test_name=name, value=value, unit=unit, reference_range=ReferenceRange(low=low, high=high), flag=flag)


def truth_of(page: int) -> LabReport:
    """Page `page` of the truth; no analyte has the last test."""
    potassium = "6.9" if page % 4 == 0 else "4.1"
    return LabReport(
        report_type=ReportType.METABOLIC,
        tests=(
            lab_test("Glucose", str(80 + page), "mg/dL", 70, 99),
            lab_test("Potassium", potassium, "mmol/L", 3.5, 5.1, Flag.CRITICAL_HIGH if page % 4 == 0 else Flag.NORMAL),
            lab_test("Hemoglobin", f"{13 + page / 10:.1f}", "g/dL", 13.5, 17.5),
            lab_test("Zonulin", "12", "ng/mL", 0, 48),
        ),
    )


def changed(report: LabReport, row: int, **fields: Any) -> LabReport:
    """The same report with one test read otherwise."""
    tests = list(report.tests)
    tests[row] = msgspec.structs.replace(tests[row], **fields)
    return msgspec.structs.replace(report, tests=tuple(tests))


def read_by_reference(page: int, truth: LabReport) -> LabReport:
    return changed(truth, 0, value="18") if page == 5 else truth


def read_by_smaller(page: int, truth: LabReport) -> LabReport:
    if page == 7:
        return LabReport()
    wrong = changed(truth, 3, value="72", unit="mg/mL") if page in (2, 5, 11) else truth
    return changed(wrong, 1, value="0.9", flag=Flag.LOW) if page == 4 else wrong


def runs_of(seconds: float, failed: int = 0, memory_mb: float | None = 410.0) -> ExtractionAggregate:
    """24 runs, of which `failed` ended without a report."""
    runs = [
        MeasuredRun(
            success=index >= failed,
            error_kind=None if index >= failed else "NO_TESTS",
            pipeline_seconds=seconds * (1 + index / 100),
            wall_seconds=seconds * (1 + index / 100) + 0.02,
            tests=4,
            stage_seconds={"preprocess": 0.1 * seconds, "extract": 0.8 * seconds, "classify": 0.0, "validate": 0.05 * seconds},
            memory_peak_mb=memory_mb,
        )
        for index in range(24)
    ]
    return aggregate(runs, benchmark_wall_time_seconds=sum(run.wall_seconds for run in runs) + 0.5)


def block(
    read: Callable[[int, LabReport], LabReport],
    measured: ExtractionAggregate,
    reference: Sequence[PageMetrics] = (),
) -> tuple[RowExtraction, list[PageMetrics]]:
    truths = [truth_of(page) for page in range(PAGES)]
    found = [read(page, truth) for page, truth in enumerate(truths)]
    pages = [
        PageMetrics(page=f"page-{index:02}", level=LEVELS[index % 3], metrics=field_level_metrics(mine, truth))
        for index, (mine, truth) in enumerate(zip(found, truths, strict=True))
    ]
    compared = list(zip(found, truths, strict=True))
    row = RowExtraction(
        rates=extraction_rates(pages),
        by_level=rates_by_level(pages),
        by_panel=grouped_rates([by_panel([page]) for page in compared]),
        by_test=grouped_rates([by_test([page]) for page in compared]),
        difference=extraction_difference(pages, reference) if reference else None,
        difference_by_level=differences_by_level(pages, reference) if reference else {},
        aggregate=measured,
        self_consistency=self_consistency({"page-00": [found[0], found[0]]}, deterministic=True),
        asked_pages=PAGES,
        failed_pages=sum(not report.tests for report in found),
        unavailable={} if reference else {"difference": "NO_REFERENCE"},
    )
    return row, pages


def nothing(reason: str = "NO_TRIALS") -> RowExtraction:
    """A variant about which nothing is known."""
    return RowExtraction(
        aggregate=aggregate([], benchmark_wall_time_seconds=0.0),
        self_consistency=SelfConsistency(estimate=None, reason=""),
        unavailable={"rates": reason, "difference": reason},
    )


def blocks() -> dict[str, RowExtraction]:
    base, pages = block(read_by_reference, runs_of(0.8))
    smaller, _ = block(read_by_smaller, runs_of(0.4, failed=2, memory_mb=240.0), pages)
    return {REFERENCE: base, SMALLER: smaller, ABSENT: nothing()}
