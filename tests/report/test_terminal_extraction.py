"""Pages and page sweeps on a terminal: they fit, say in words what colours say, and take nothing from the page as an escape."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from extraction_row_samples import REFERENCE, SMALLER, blocks, nothing
from fewbits.records.extraction import (
    ErrorKind,
    ExtractedFile,
    ExtractionDocument,
    Flag,
    FlagSource,
    Issue,
    IssueKind,
    LabReport,
    LabTest,
    PageExtraction,
    PatientInfo,
    ReferenceRange,
    ReportType,
    Sex,
    StageName,
    StageResult,
)
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report.terminal import render_terminal
from fewbits.report.terminal_extraction import extraction_columns, range_words, render_documents

NASTY = "[red]x[/red]\x1b[2J\u202e\n"
TESTS = (
    LabTest(
        test_name="Potassium",
        value="6.9",
        unit="mmol/L",
        reference_range=ReferenceRange(low=3.5, high=5.1),
        flag=Flag.CRITICAL_HIGH,
        confidence=0.974,
    ),
    LabTest(test_name="LDL cholesterol", value="99", reference_range=ReferenceRange(high=100), flag=Flag.NORMAL),
    LabTest(test_name="Nitrite", value="Positive", reference_range=ReferenceRange(text="Negative"), flag=Flag.ABNORMAL),
    LabTest(test_name="Zonulin", value="", flag_source=FlagSource.NO_RANGE),
)
PATIENT = PatientInfo(name="Ada Example", age=44, gender=Sex.FEMALE, patient_id="X-1", date_of_birth="1982-03-04")


def page(**changes: Any) -> PageExtraction:
    found = PageExtraction(
        engine="ocr",
        success=True,
        report=LabReport(
            report_type=ReportType.METABOLIC, patient_info=PATIENT, lab_name="North Lab", report_date="2026-11-02", tests=TESTS
        ),
        total_time_seconds=0.83,
    )
    return msgspec.structs.replace(found, **changes)


def document(*pages: PageExtraction, file: str = "a.png") -> ExtractionDocument:
    return ExtractionDocument(engine="ocr", files=(ExtractedFile(file=file, pages=pages),))


def printed(renderable: RenderableType, width: int = 100, *, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None).print(renderable)
    return stream.getvalue()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


class TestDocuments:
    @pytest.mark.parametrize("width", [60, 80, 100, 160])
    def test_everything_of_a_page_is_there_and_fits(self, width: int) -> None:
        text = printed(render_documents(document(page())), width)
        assert max(len(line) for line in text.split("\n")) <= width
        for word in ("a.png", "4 tests, 2 flagged, 1 critical", "ocr in 0.830 s", "metabolic report", "North Lab", "2026-11-02"):
            assert word in text
        assert "Ada Example, female, 44 years, born 1982-03-04, id X-1" in " ".join(text.split())
        assert "\x1b" not in text

    def test_tests_with_flags_in_words(self) -> None:
        text = printed(render_documents(document(page())))
        found = [" ".join(line_of(text, name).split()) for name in ("Potassium", "LDL", "Nitrite", "Zonulin")]
        assert found == [
            "Potassium 6.9 mmol/L 3.5 to 5.1 CRITICAL HIGH 97.4 %",
            "LDL cholesterol 99 — at most 100 normal —",
            "Nitrite Positive — Negative abnormal —",
            "Zonulin — — — — (no range) —",
        ]

    def test_flags_have_a_colour_on_a_terminal(self) -> None:
        text = printed(render_documents(document(page())), colour=True)
        assert "\x1b[1;31mCRITICAL HIGH" in text
        assert "\x1b[32mnormal" in text

    def test_a_redacted_report_has_no_patient_line(self) -> None:
        report = msgspec.structs.replace(page().report, patient_info=PatientInfo(gender=Sex.FEMALE))
        assert "patient: female\n" in printed(render_documents(document(page(report=report))))
        for patient in (None, PatientInfo()):
            text = printed(render_documents(document(page(report=msgspec.structs.replace(report, patient_info=patient)))))
            assert "patient" not in text
            assert "None" not in text

    def test_a_failed_page_says_why(self) -> None:
        stage = StageResult(stage_name=StageName.EXTRACT, timing_seconds=0.1, error="no rows")
        failed = page(
            success=False, error_kind=ErrorKind.NO_TESTS, error="text, but no table", report=LabReport(), stages=(stage,)
        )
        text = printed(render_documents(document(failed)))
        assert "no usable report: no tests: text, but no table (ocr, 0.830 s)" in text
        assert "! extract failed: no rows" in text
        assert "other report" not in text
        bare = printed(render_documents(document(msgspec.structs.replace(failed, error_kind=None, error=None))))
        assert "no usable report: no kind recorded: no reason recorded" in bare

    def test_issues_and_notes(self) -> None:
        issues = (
            Issue(kind=IssueKind.NEGATIVE_VALUE, row=0, test_name="Potassium", detail="-6.9"),
            Issue(kind=IssueKind.NO_TESTS),
        )
        text = printed(render_documents(document(page(issues=issues, notes=("converted from CMYK",)))))
        assert "! row 1 (Potassium): negative value: -6.9" in text
        assert "! report: no tests" in text
        assert "- converted from CMYK" in text

    def test_pages_of_a_file_are_counted(self) -> None:
        text = printed(render_documents(document(page(page=1, pages=2), page(page=2, pages=2), file="b.pdf")))
        assert [line for line in text.splitlines() if line.startswith("b.pdf")] == ["b.pdf, page 1 of 2", "b.pdf, page 2 of 2"]

    def test_nothing_was_read(self) -> None:
        assert "No page was read." in printed(render_documents(ExtractionDocument(engine="ocr", files=())))

    @pytest.mark.parametrize("colour", [False, True])
    def test_text_of_a_page_is_neither_markup_nor_escape(self, colour: bool) -> None:
        test = LabTest(test_name=NASTY, value=NASTY, unit=NASTY, reference_range=ReferenceRange(text=NASTY))
        report = LabReport(
            lab_name=NASTY,
            report_date=NASTY,
            patient_info=PatientInfo(name=NASTY, patient_id=NASTY, date_of_birth=NASTY),
            tests=(test,),
        )
        stage = StageResult(stage_name=StageName.EXTRACT, timing_seconds=0.1, error=NASTY)
        issue = Issue(kind=IssueKind.EMPTY_VALUE, row=0, test_name=NASTY, detail=NASTY)
        for success in (True, False):
            found = page(
                success=success, error=NASTY, engine=NASTY, report=report, stages=(stage,), issues=(issue,), notes=(NASTY,)
            )
            text = printed(render_documents(document(found, file=NASTY)), 200, colour=colour)
            assert "[red]x" in text
            assert "[U+001B]" in text
            assert "\x1b[2J" not in text
            assert "\u202e" not in text

    @settings(max_examples=40, deadline=None)
    @given(words=st.text(min_size=1, max_size=60), width=st.integers(50, 160))
    def test_any_text_fits_and_stays_text(self, words: str, width: int) -> None:
        test = LabTest(test_name=words, value=words, unit=words, reference_range=ReferenceRange(text=words))
        text = printed(render_documents(document(page(report=LabReport(tests=(test,)), notes=(words,)))), width)
        hidden = {char for char in text if not char.isprintable() and char not in "\n "}
        assert not hidden


@pytest.mark.parametrize(
    ("printed_range", "words"),
    [
        (None, "—"),
        (ReferenceRange(), "—"),
        (ReferenceRange(low=3.5, high=5.1), "3.5 to 5.1"),
        (ReferenceRange(low=0, high=1_500_000), "0 to 1500000"),
        (ReferenceRange(low=40), "at least 40"),
        (ReferenceRange(high=200), "at most 200"),
        (ReferenceRange(high=200, text="<200"), "<200"),
    ],
)
def test_ranges_in_words(printed_range: ReferenceRange | None, words: str) -> None:
    assert range_words(printed_range) == words


class TestSweeps:
    @pytest.fixture
    def summary_of(
        self, new_row: Callable[..., QuantRow], new_session: Callable[..., Session], new_summary: Callable[..., SweepSummary]
    ) -> Callable[[dict[str, RowExtraction]], SweepSummary]:
        def make(found: dict[str, RowExtraction]) -> SweepSummary:
            rows = tuple(
                new_row(tag, is_reference=tag == REFERENCE, bits_per_weight=8.0, extraction=row) for tag, row in found.items()
            )
            session = new_session(
                "lab-report-pipeline", rows=rows, minimum_viable_quant_tag=SMALLER, best_value_quant_tag=SMALLER
            )
            return new_summary((msgspec.structs.replace(session, baseline_quant=REFERENCE),))

        return make

    @pytest.mark.parametrize("width", [60, 80, 110, 160])
    def test_the_columns_of_pages(self, summary_of: Callable[..., SweepSummary], width: int) -> None:
        text = printed(render_terminal(summary_of(blocks()), width), width)
        assert max(len(line) for line in text.split("\n")) <= width
        for word in ("field F1", "critical", "p95", "ocr-int8", "vision-nf4"):
            assert word in text
        assert "tok/s" not in text
        line = next(line for line in text.split("\n") if line.startswith("ocr-int8") and "0.926" in line)
        assert ("[" in line) == (width >= 110)
        assert "66.7 %" in line
        assert "0.487 s" in line or "0.49 s" in line
        assert ("2.05" in line) == (width >= 72)
        if width >= 110:
            assert "\u22120.070" in line
            assert "240.0 MiB" in line

    def test_rows_without_numbers_show_dashes(self, summary_of: Callable[..., SweepSummary]) -> None:
        text = printed(render_terminal(summary_of({REFERENCE: nothing(), SMALLER: nothing()}), 160), 160)
        line = next(line for line in text.split("\n") if line.startswith("ocr-int8 ") and "8.00" in line)
        assert line.split()[2:9] == ["—"] * 7
        assert "None" not in text

    def test_memory_is_the_gpus_where_one_was_used(self, new_row: Callable[..., QuantRow]) -> None:
        found = blocks()[SMALLER]
        row = msgspec.structs.replace(found, aggregate=msgspec.structs.replace(found.aggregate, gpu_peak_mb=5000.0))
        assert extraction_columns(wide=True, narrow=False)["memory"](new_row("x", extraction=row)) == "4.9 GiB GPU"
        assert extraction_columns(wide=True, narrow=False)["memory"](new_row("x")) == "—"
