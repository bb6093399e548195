"""Pages on a terminal: what was read from each of them, and a sweep's columns. `rich` is imported inside the functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fewbits.analysis.wording import count
from fewbits.records.estimate import Estimate
from fewbits.records.extraction import (
    ExtractionDocument,
    Flag,
    Issue,
    LabReport,
    LabTest,
    PageExtraction,
    PatientInfo,
    ReferenceRange,
)
from fewbits.records.summary import QuantRow
from fewbits.report import formats
from fewbits.report.escape import NAME_LIMIT, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Cell = Callable[[QuantRow], str]
_TEXT_LIMIT = 120
_FLAG_STYLES = {
    None: "dim",
    Flag.NORMAL: "green",
    Flag.LOW: "yellow",
    Flag.HIGH: "yellow",
    Flag.ABNORMAL: "yellow",
    Flag.CRITICAL_LOW: "bold red",
    Flag.CRITICAL_HIGH: "bold red",
}


def extraction_columns(*, wide: bool, narrow: bool) -> dict[str, Cell]:
    """Return heading -> cell of a sweep over pages: accuracy in the place of tokens, intervals where there is room."""
    cells: dict[str, Cell] = {
        "bits": lambda row: formats.bits(row.bits_per_weight),
        "field F1": lambda row: formats.score_estimate(_rate(row, "field_f1")) if wide else _score(row),
        "vs reference": lambda row: formats.signed(_value(_difference(row))),
        "value": lambda row: formats.percent(_value(_rate(row, "value_accuracy"))),
        "critical": lambda row: formats.percent(_value(_rate(row, "critical_sensitivity"))),
        "p95": lambda row: formats.seconds(row.extraction.aggregate.p95_pipeline_time_seconds if row.extraction else None),
        "pages/s": lambda row: formats.rate(row.extraction.aggregate.images_per_second if row.extraction else None),
        "memory": _peak_memory,
    }
    names: tuple[str, ...] = ("field F1", "critical", "p95", "pages/s")
    if wide:
        names = tuple(cells)
    elif narrow:
        names = ("field F1", "critical", "p95")
    return {name: cells[name] for name in names}


def _rate(row: QuantRow, name: str) -> Estimate | None:
    found: Estimate | None = getattr(row.extraction.rates, name, None) if row.extraction else None
    return found


def _score(row: QuantRow) -> str:
    return formats.score(_value(_rate(row, "field_f1")))


def _difference(row: QuantRow) -> Estimate | None:
    compared = row.extraction.difference if row.extraction else None
    return compared.field_f1.estimate if compared is not None else None


def _peak_memory(row: QuantRow) -> str:
    """Return the GPU's peak where one was used, else the process's."""
    if row.extraction is None:
        return formats.MISSING
    measured = row.extraction.aggregate
    on_gpu = measured.gpu_peak_mb is not None
    return f"{formats.megabytes(measured.gpu_peak_mb)} GPU" if on_gpu else formats.megabytes(measured.memory_peak_mb)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def render_documents(document: ExtractionDocument) -> RenderableType:
    """Return every page: what it is about, its tests in a table, what is implausible, and why it failed where it did."""
    from rich.console import Group

    if not document.files:
        return _text("No page was read.")
    return Group(*(part for read in document.files for page in read.pages for part in _page_parts(read.file, page)))


def _page_parts(file: str, page: PageExtraction) -> Iterator[RenderableType]:
    place = f", page {page.page} of {page.pages}" if page.pages > 1 else ""
    seconds = formats.seconds(page.total_time_seconds)
    yield _text(f"{visible(file, _TEXT_LIMIT)}{place}", "bold")
    if page.success:
        flagged = f"{page.flagged_count} flagged, {page.critical_count} critical"
        yield _text(f"{count(len(page.report.tests), 'test')}, {flagged}; {visible(page.engine, NAME_LIMIT)} in {seconds}")
    else:
        kind = page.error_kind.value.lower().replace("_", " ") if page.error_kind is not None else "no kind recorded"
        said = visible(page.error, _TEXT_LIMIT) if page.error else "no reason recorded"
        yield _text(f"no usable report: {kind}: {said} ({visible(page.engine, NAME_LIMIT)}, {seconds})", "bold red")
    if page.report != LabReport():
        yield from (_text(line) for line in _head(page.report))
    if page.report.tests:
        yield _tests_table(page.report.tests)
    for issue in page.issues:
        yield _text(f"! {_issue_words(issue)}", "yellow")
    for stage in page.stages:
        if stage.error is not None:
            yield _text(f"! {stage.stage_name.value} failed: {visible(stage.error, _TEXT_LIMIT)}", "red")
    for note in page.notes:
        yield _text(f"- {visible(note, _TEXT_LIMIT)}", "dim")
    yield _text("")


def _head(report: LabReport) -> Iterator[str]:
    """Yield what stands above the tests: only what the document holds."""
    facts = [("laboratory", report.lab_name), ("date", report.report_date)]
    shown = "".join(f"; {words} {visible(value, _TEXT_LIMIT)}" for words, value in facts if value)
    yield f"{report.report_type.value} report{shown}"
    patient = _patient_words(report.patient_info) if report.patient_info is not None else ""
    if patient:
        yield f"patient: {patient}"


def _patient_words(patient: PatientInfo) -> str:
    facts = (
        patient.name,
        patient.gender.value if patient.gender is not None else None,
        f"{patient.age} years" if patient.age is not None else None,
        f"born {patient.date_of_birth}" if patient.date_of_birth else None,
        f"id {patient.patient_id}" if patient.patient_id else None,
    )
    return ", ".join(visible(fact, _TEXT_LIMIT) for fact in facts if fact)


def _tests_table(tests: tuple[LabTest, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("test", overflow="fold", ratio=2)
    table.add_column("value", overflow="fold", justify="right", max_width=24)
    table.add_column("unit", overflow="fold", max_width=16)
    table.add_column("range", overflow="fold", max_width=24)
    table.add_column("flag", overflow="fold", max_width=30)
    table.add_column("confidence", justify="right", no_wrap=True)
    for test in tests:
        style = _FLAG_STYLES[test.flag]
        table.add_row(
            _text(visible(test.test_name, _TEXT_LIMIT)),
            _text(_shown(test.value), style if test.flag not in (None, Flag.NORMAL) else ""),
            _text(_shown(test.unit)),
            _text(range_words(test.reference_range)),
            _text(_flag_words(test), style),
            _text(formats.percent(test.confidence)),
        )
    return table


def range_words(printed: ReferenceRange | None) -> str:
    """Return a range as people write it: its text where there is one, else its ends, both of which belong to it."""
    if printed is None:
        return formats.MISSING
    if printed.text:
        return visible(printed.text, _TEXT_LIMIT)
    low, high = (None if end is None else f"{end:.10g}" for end in (printed.low, printed.high))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is None and high is None:
        return formats.MISSING
    return f"at most {high}" if low is None else f"at least {low}"


def _flag_words(test: LabTest) -> str:
    """Return a flag in words, so that nothing depends on its colour; of a test without one, why there is none."""
    if test.flag is not None:
        words = test.flag.value.replace("_", " ")
        return words.upper() if test.flag in (Flag.CRITICAL_LOW, Flag.CRITICAL_HIGH) else words
    reason = f" ({test.flag_source.value.lower().replace('_', ' ')})" if test.flag_source is not None else ""
    return f"{formats.MISSING}{reason}"


def _issue_words(issue: Issue) -> str:
    kind = issue.kind.value.lower().replace("_", " ")
    place = f"row {issue.row + 1}" if issue.row is not None else "report"
    name = f" ({visible(issue.test_name, NAME_LIMIT)})" if issue.test_name else ""
    detail = f": {visible(issue.detail, _TEXT_LIMIT)}" if issue.detail else ""
    return f"{place}{name}: {kind}{detail}"


def _shown(text: str | None) -> str:
    return visible(text, _TEXT_LIMIT) if text else formats.MISSING


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style=style)
