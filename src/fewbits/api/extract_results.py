"""An extraction sweep's answers read back: labels, the journal's texts, rates per variant, the runbook's rows.

The answers are a child process's output: whatever they hold, a page without a readable report is one without tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fewbits.analysis.extraction_benchmark import aggregate
from fewbits.analysis.extraction_rates import (
    differences_by_level,
    extraction_difference,
    extraction_rates,
    grouped_rates,
    rates_by_level,
    self_consistency,
)
from fewbits.analysis.items import item_order
from fewbits.analysis.ranking import Artifacts, reference_tag
from fewbits.analysis.trial_table import build_table
from fewbits.core.codec import decode, digest, encode_canonical
from fewbits.core.errors import StoreError
from fewbits.extraction.comparison import TOLERANCE
from fewbits.extraction.metrics import by_panel, by_test, field_level_metrics
from fewbits.extraction.timings import join_timings
from fewbits.records.base import TrialStatus, Unavailable
from fewbits.records.extraction import ErrorKind, LabReport, PageExtraction
from fewbits.records.extraction_metrics import ExtractionAggregate, MeasuredRun, PageMetrics, SelfConsistency
from fewbits.records.extraction_run import PageLabel, PageLabels, PerRunRow, RowExtraction
from fewbits.records.plan import Plan
from fewbits.records.trial import TrialAnswer, TrialView
from fewbits.store.documents import DAMAGED, read_document
from fewbits.store.journal import JournalContent, read_rows_at
from fewbits.store.run_directory import RunDirectory
from fewbits.workloads.extraction.score import read_extraction

_MIB = 1024**2
_FAILURES = {TrialStatus.TIMEOUT: ErrorKind.TIMEOUT}


@dataclass(frozen=True, slots=True)
class MeasuredPage:
    """One counted run: which page, its trial, and what was read; `found` is `None` where there is no readable answer."""

    label: PageLabel
    trial: TrialView
    found: PageExtraction | None
    why: str = ""
    """Why there is none."""

    @property
    def success(self) -> bool:
        """Whether a report with at least one test was read."""
        return self.found is not None and self.found.success

    @property
    def report(self) -> LabReport:
        """What counts as read: nothing where the extraction failed."""
        return self.found.report if self.found is not None and self.found.success else LabReport()

    @property
    def error_kind(self) -> str | None:
        """Why it failed; `None` where it did not."""
        if self.found is not None:
            return self.found.error_kind.value if self.found.error_kind is not None else None
        return _FAILURES.get(self.trial.status, ErrorKind.ENGINE_FAILED).value


def read_row_extractions(
    directory: RunDirectory, plan: Plan, artifacts: Artifacts, journal: JournalContent[TrialView]
) -> dict[tuple[str, str], RowExtraction]:
    """Return the extraction block of every variant, by (model id, quant tag). Empty where the plan reads no pages.

    Raises `StoreError` where `page_labels.json` is missing, damaged or another than the plan's, and like `build_table`.
    """
    if plan.spec.extraction is None:
        return {}
    rows: dict[tuple[str, str], RowExtraction] = {}
    for model in plan.models:
        reference = reference_tag(plan, model.model_id, artifacts)
        tags = tuple(dict.fromkeys((reference, *plan.spec.quants)))  # the reference first: others are compared with it
        base: list[PageMetrics] | None = None
        for tag in tags:
            runs = list(measured_pages(directory, plan, journal, (model.model_id, tag)))
            first = _page_metrics(runs, plan)
            rows[model.model_id, tag] = _row(runs, first, base if tag != reference else None, plan)
            base = first if tag == reference else base
    return rows


def measured_pages(
    directory: RunDirectory, plan: Plan, journal: JournalContent[TrialView], key: tuple[str, str]
) -> Iterator[MeasuredPage]:
    """Yield the counted runs of one variant, by task and repetition. Raises `StoreError`."""
    labels = read_page_labels(directory, plan)
    group = build_table(plan, journal.rows).groups.get(key)
    if group is None:
        return
    places = {row.trial_id: offset for row, offset in zip(journal.rows, journal.offsets, strict=True)}
    answered = [trial for trial in group.trials if trial.status is TrialStatus.OK]
    answers = read_rows_at(directory.trials_path, [places[trial.trial_id] for trial in answered], TrialAnswer)
    by_id = {row.trial_id: row for row in answers}
    for trial in group.trials:
        yield _measured_page(labels[trial.task_id], trial, by_id.get(trial.trial_id))


def _measured_page(label: PageLabel, trial: TrialView, answer: TrialAnswer | None) -> MeasuredPage:
    if answer is None:
        return MeasuredPage(label, trial, None, f"the trial ended with status {trial.status.value}")
    found = read_extraction(answer.output_text)
    if isinstance(found, str):
        return MeasuredPage(label, trial, None, found)
    return MeasuredPage(label, trial, join_timings(found, answer.telemetry.token_metrics.raw_timings))


def read_page_labels(directory: RunDirectory, plan: Plan) -> dict[str, PageLabel]:
    """Return the pages that the plan asks about, by task id. Raises `StoreError`."""
    path = directory.page_labels_path
    labels = read_document(path, PageLabels)
    if labels is None:
        msg = f"{directory.root} holds a sweep over pages but no {path.name}. Run its command again: it writes the file."
        raise StoreError(msg)
    pinned = plan.spec.extraction.labels_digest if plan.spec.extraction is not None else None
    if pinned is not None and labels_digest(labels) != pinned:
        msg = f"{path} does not hold the pages that this run was planned with. {DAMAGED}"
        raise StoreError(msg)
    found = {page.task_id: page for page in labels.pages}
    if missing := set(item_order(plan)) - found.keys():
        msg = f"{path} does not fit the plan of this run: it lacks {min(missing)}. {DAMAGED}"
        raise StoreError(msg)
    return found


def labels_digest(labels: PageLabels) -> str:
    """Return the digest of labels as they come back from a file: numbers are floats there, whatever made them."""
    return digest(decode(encode_canonical(labels), PageLabels, "labels"))


def per_run_row(run: MeasuredPage) -> PerRunRow:
    """Return the runbook's line about one run."""
    trial, found = run.trial, run.found
    stages = found.stages if found is not None else ()
    rss = trial.telemetry.peak_memory_rss
    return PerRunRow(
        variant=trial.quant_tag,
        image=run.label.image,
        page=run.label.page,
        repeat=trial.repetition,
        success=run.success,
        error=(found.error if found is not None else run.why) or None,
        error_kind=run.error_kind,
        pipeline_time_seconds=found.total_time_seconds if found is not None else None,
        wall_time_seconds=trial.telemetry.total_latency,
        tests_extracted=len(run.report.tests),
        flagged_count=found.flagged_count if found is not None and found.success else 0,
        critical_count=found.critical_count if found is not None and found.success else 0,
        stage_timings={stage.stage_name.value: stage.timing_seconds for stage in stages if stage.timing_seconds is not None},
        stage_confidence={stage.stage_name.value: stage.confidence for stage in stages},
        gpu=found.gpu if found is not None else None,
        peak_memory_rss_mb=rss / _MIB if rss is not None else None,
        field_f1=trial.adherence_score if run.label.truth is not None else None,
        run_quality_status=trial.run_quality_status,
        run_quality_reasons=tuple(reason.value for reason in trial.run_quality_reasons),
    )


def aggregate_of(runs: list[MeasuredPage]) -> ExtractionAggregate:
    """Add up all runs of one variant.

    The measured loop is the time from the sample before each run to the sample after it: what lies between runs (the journal,
    other variants' runs, a pause before a resume) is not this variant's.
    """
    return aggregate([_measured(run) for run in runs], benchmark_wall_time_seconds=sum(map(_occupied_seconds, runs)))


def _occupied_seconds(run: MeasuredPage) -> float:
    environment = run.trial.environment
    seconds = environment.during.wall_seconds if environment is not None else None
    return seconds if seconds is not None else run.trial.telemetry.total_latency or 0.0


def _measured(run: MeasuredPage) -> MeasuredRun:
    row = per_run_row(run)
    occupied = _occupied_seconds(run)
    return MeasuredRun(
        success=row.success,
        error_kind=row.error_kind,
        # an engine that gave no answer was busy all the same: a failure never leaves the mean
        pipeline_seconds=row.pipeline_time_seconds if row.pipeline_time_seconds is not None else occupied,
        wall_seconds=row.wall_time_seconds if row.wall_time_seconds is not None else occupied,
        tests=row.tests_extracted,
        stage_seconds=row.stage_timings,
        gpu_peak_mb=row.gpu.max_memory_allocated_mb if row.gpu is not None else None,
        memory_peak_mb=row.peak_memory_rss_mb,
    )


def _page_metrics(runs: list[MeasuredPage], plan: Plan) -> list[PageMetrics]:
    """Compare the first repetition of every labelled page with its truth."""
    tolerance = _tolerance(plan)
    return [
        PageMetrics(
            page=run.label.task_id,
            level=run.label.level,
            metrics=field_level_metrics(run.report, run.label.truth, tolerance=tolerance),
        )
        for run in runs
        if run.trial.repetition == 0 and run.label.truth is not None
    ]


def _tolerance(plan: Plan) -> float:
    return (plan.spec.extraction.tolerance if plan.spec.extraction is not None else 0.0) or TOLERANCE


def _row(runs: list[MeasuredPage], pages: list[PageMetrics], base: list[PageMetrics] | None, plan: Plan) -> RowExtraction:
    """Put a variant's block together; `base` is the reference's pages, `None` for the reference itself."""
    asked = [run for run in runs if run.trial.repetition == 0]
    comparable = base is not None and {page.page for page in base} == {page.page for page in pages} and bool(pages)
    compared = [(run.report, run.label.truth) for run in asked if run.label.truth is not None]
    tolerance = _tolerance(plan)
    unavailable: dict[str, str] = {}
    if not pages:
        unavailable["rates"] = (Unavailable.NO_CHECKS if asked else Unavailable.NO_TRIALS).value
    if not comparable:
        unavailable["difference"] = unavailable.get("rates", Unavailable.NO_REFERENCE.value)
    return RowExtraction(
        rates=extraction_rates(pages) if pages else None,
        by_level=rates_by_level(pages),
        by_panel=grouped_rates([by_panel([page], tolerance=tolerance) for page in compared]),
        by_test=grouped_rates([by_test([page], tolerance=tolerance) for page in compared]),
        difference=extraction_difference(pages, base) if comparable and base is not None else None,
        difference_by_level=differences_by_level(pages, base) if comparable and base is not None else {},
        aggregate=aggregate_of(runs),
        self_consistency=_consistency(runs, plan),
        asked_pages=len(asked),
        failed_pages=sum(not run.success for run in asked),
        unavailable=unavailable,
    )


def _consistency(runs: list[MeasuredPage], plan: Plan) -> SelfConsistency:
    pages: dict[str, list[LabReport]] = {}
    for run in runs:
        pages.setdefault(run.label.task_id, []).append(run.report)
    samples = any(run.found is not None and run.found.sampled for run in runs) and plan.controls.temperature > 0
    return self_consistency(pages, deterministic=not samples, tolerance=_tolerance(plan))


def by_variant(
    directory: RunDirectory, plan: Plan, journal: JournalContent[TrialView]
) -> Mapping[tuple[str, str], list[MeasuredPage]]:
    """Return the counted runs of every variant that has some. Raises `StoreError`."""
    found = {key: list(measured_pages(directory, plan, journal, key)) for key in plan.spec.variant_keys}
    return {key: runs for key, runs in found.items() if runs}
