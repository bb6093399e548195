"""The stages of one page: classify, preprocess, extract, validate, flag; each timed by the same clock.

An engine answers for the first three, in the order that suits it: a recogniser of text classifies what it has read, a model
that sees the page classifies first. Validation and flags are rules, the same for every engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from fewbits.core.errors import Problem, SpecError
from fewbits.extraction.flags import flag_report
from fewbits.extraction.validation import find_issues
from fewbits.records.extraction import (
    ErrorKind,
    GpuMemorySnapshot,
    Issue,
    LabReport,
    LabTest,
    PageExtraction,
    StageName,
    StageResult,
)

Clock = Callable[[], float]
Pixels = npt.NDArray[np.uint8]


@dataclass(slots=True)
class StageTimer:
    """Collects stages as they end. `clock` returns seconds."""

    clock: Clock
    stages: list[StageResult] = field(default_factory=list)
    _began: float = 0.0

    def begin(self) -> None:
        """Read the clock at the start of a stage."""
        self._began = self.clock()

    def end(
        self,
        name: StageName,
        *,
        confidence: float | None = None,
        confidence_meaning: str = "",
        output: str = "",
        input_summary: str = "",
        reasoning: str = "",
        retries: int = 0,
        error: str | None = None,
        parts_seconds: dict[str, float] | None = None,
    ) -> None:
        """Read the clock and note the stage. Texts are counts and kinds, never what a page says about a patient."""
        seconds = self.clock() - self._began
        self.stages.append(
            StageResult(
                stage_name=name,
                timing_seconds=max(0.0, seconds),
                confidence=confidence,
                confidence_meaning=confidence_meaning,
                output=output,
                input_summary=input_summary,
                reasoning=reasoning,
                retries=retries,
                error=error,
                parts_seconds=parts_seconds or {},
            )
        )


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What an engine made of a page. `report` has no flags yet; `error_kind` says why there is none of use."""

    report: LabReport
    error_kind: ErrorKind | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    gpu: GpuMemorySnapshot | None = None
    sampled: bool = False
    retries: int = 0
    """How often a model was asked again, knowing what was wrong with its answer."""


class ExtractionEngine(Protocol):
    """Reads pages. Loaded once and kept."""

    @property
    def name(self) -> str:
        """As in results (`ocr`, `vision`)."""

    def reseed(self, seed: int) -> None:
        """Draw from this seed on, where the engine samples; nothing to do where it does not."""

    def extract(self, pixels: Pixels, timer: StageTimer) -> EngineReport:
        """Read one page (uint8[height, width, 3], RGB, upright), noting classify, preprocess and extract in `timer`.

        What can go wrong with a page is a value (`error_kind`); only a broken engine raises.
        """


@dataclass(frozen=True, slots=True)
class PageSource:
    """Where a page comes from: its place in its file, and what was changed on opening it."""

    number: int = 1
    count: int = 1
    notes: tuple[str, ...] = ()


def extract_page(
    engine: ExtractionEngine,
    pixels: Pixels,
    source: PageSource,
    *,
    clock: Clock,
    redact: bool = False,
) -> PageExtraction:
    """Take a page through all stages. Never raises for what a page shows; a report without tests is a failure.

    `redact` leaves the patient's data out of the answer.
    """
    began = clock()
    timer = StageTimer(clock)
    found = engine.extract(pixels, timer)
    report, issues = found.report, tuple[Issue, ...]()
    if found.error_kind is None:
        report, issues = _validated(report, found.retries, timer)
        report = _flagged(report, timer)
    total = clock() - began
    error_kind, error = found.error_kind, found.error
    if error_kind is None and not report.tests:
        error_kind, error = ErrorKind.NO_TESTS, "no row of a lab report was found on the page"
    return PageExtraction(
        engine=engine.name,
        page=source.number,
        pages=source.count,
        success=error_kind is None,
        error_kind=error_kind,
        error=error,
        stages=tuple(timer.stages),
        report=without_patient(report) if redact else report,
        issues=issues,
        notes=source.notes + found.notes,
        gpu=found.gpu,
        sampled=found.sampled,
        total_time_seconds=total,
    )


def unreadable_page(engine: str, source: PageSource, error: SpecError, seconds: float = 0.0) -> PageExtraction:
    """Return the answer about a page that cannot be opened: a failed page, no failed engine. Names no file."""
    return PageExtraction(
        engine=engine,
        page=source.number,
        pages=source.count,
        success=False,
        error_kind=ErrorKind.UNREADABLE_INPUT,
        error="; ".join(_in_words(problem) for problem in error.problems),
        report=LabReport(),
        total_time_seconds=seconds,
    )


def _in_words(problem: Problem) -> str:
    """Say what is wrong and what to do, but not where: a file's name may be a patient's."""
    return f"{problem.message} ({problem.hint})" if problem.hint else problem.message


def without_patient(report: LabReport) -> LabReport:
    """Return a report without anything about who it is about; sex stays, since flags rest on it."""
    patient = report.patient_info
    kept = None
    if patient is not None and patient.gender is not None:
        kept = msgspec.structs.replace(patient, name=None, age=None, patient_id=None, date_of_birth=None)
    return msgspec.structs.replace(report, patient_info=kept, metadata={})


def _validated(report: LabReport, retries: int, timer: StageTimer) -> tuple[LabReport, tuple[Issue, ...]]:
    timer.begin()
    issues = find_issues(report)
    timer.end(
        StageName.VALIDATE,
        confidence=_share(report.tests, {issue.row for issue in issues}),
        confidence_meaning="share of the rows without an implausible thing",
        input_summary=f"{len(report.tests)} tests",
        output=f"{len(issues)} issues",
        reasoning=", ".join(sorted({issue.kind.value for issue in issues})),
        retries=retries,
    )
    return report, issues


def _share(tests: tuple[LabTest, ...], rows: set[int | None]) -> float | None:
    return 1 - len(rows - {None}) / len(tests) if tests else None


def _flagged(report: LabReport, timer: StageTimer) -> LabReport:
    timer.begin()
    flagged = flag_report(report)
    decided = sum(test.flag is not None for test in flagged.tests)
    timer.end(
        StageName.FLAG,
        confidence=decided / len(flagged.tests) if flagged.tests else None,
        confidence_meaning="share of the tests that a range or limit decides",
        input_summary=f"{len(report.tests)} tests",
        output=f"{decided} flags",
    )
    return flagged
