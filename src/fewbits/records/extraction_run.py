"""What a benchmark of extraction pipelines leaves in its folder beside plan, journal and summary."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from fewbits.records.base import Rate, Record, RunQuality
from fewbits.records.extraction import FileName, GpuMemorySnapshot, LabReport
from fewbits.records.extraction_metrics import (
    ExtractionAggregate,
    ExtractionDifference,
    ExtractionRates,
    GroupRates,
    Hint,
    SelfConsistency,
)

PAGE_LABELS_SCHEMA = "fewbits.page_labels.v1"
BENCHMARK_SCHEMA = "fewbits.extraction_benchmark.v1"


class PageLabel(Record, frozen=True, kw_only=True):
    """One page that a sweep asks about, by its task; `truth` where it is known."""

    task_id: str
    image: FileName
    page: Annotated[int, Meta(ge=1)] | None = None
    level: str | None = None
    truth: LabReport | None = None


class PageLabels(Record, frozen=True, kw_only=True):
    """`page_labels.json`: what the pages of a sweep are and say. A sweep over pages of patients is as private as the pages."""

    schema_version: str = PAGE_LABELS_SCHEMA
    pages: tuple[PageLabel, ...]


class RowExtraction(Record, frozen=True, kw_only=True):
    """What a sweep over extraction pipelines knows about a variant beyond every other row.

    Rates are of the first repetition of every page; the aggregate is of all measured runs.
    """

    rates: ExtractionRates | None = None
    by_level: dict[str, ExtractionRates] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    by_panel: dict[str, GroupRates] = {}  # noqa: RUF012
    by_test: dict[str, GroupRates] = {}  # noqa: RUF012
    difference: ExtractionDifference | None = None
    """Against the reference on the same pages; `None` for the reference."""
    difference_by_level: dict[str, ExtractionDifference] = {}  # noqa: RUF012
    aggregate: ExtractionAggregate
    self_consistency: SelfConsistency
    asked_pages: Annotated[int, Meta(ge=0)] = 0
    failed_pages: Annotated[int, Meta(ge=0)] = 0
    """Of these, pages without a usable report: they count as reports without tests."""
    unavailable: dict[str, str] = {}  # noqa: RUF012


class PerRunRow(Record, frozen=True, kw_only=True):
    """A line of `per_run.jsonl`: one page, one repeat, one variant. Holds no text of a page; file names stand as given."""

    schema_version: str = "fewbits.extraction_run.v1"
    variant: str
    image: str
    page: int | None = None
    repeat: Annotated[int, Meta(ge=0)]
    """From 0."""
    success: bool
    error: str | None = None
    error_kind: str | None = None
    pipeline_time_seconds: float | None
    """All stages; `None` where the engine gave no answer."""
    wall_time_seconds: float | None
    """Opening the file, the stages, and writing the answer down."""
    tests_extracted: Annotated[int, Meta(ge=0)]
    flagged_count: Annotated[int, Meta(ge=0)]
    critical_count: Annotated[int, Meta(ge=0)]
    stage_timings: dict[str, float]
    """Seconds, by stage."""
    stage_confidence: dict[str, Rate | None]
    gpu: GpuMemorySnapshot | None = None
    peak_memory_rss_mb: float | None = None
    """Of the engine's process during this run, MiB (1,048,576 bytes)."""
    field_f1: Rate | None = None
    run_quality_status: RunQuality
    run_quality_reasons: tuple[str, ...] = ()


class VariantBenchmark(Record, frozen=True, kw_only=True):
    """One variant's part of `benchmark_results.json`."""

    aggregate: ExtractionAggregate
    self_consistency_eval: SelfConsistency | None = None
    """`None` with `--skip-eval`."""
    ground_truth: ExtractionRates | None = None
    """`None` where the pages have no labels, and with `--skip-eval`."""


class BenchmarkResults(Record, frozen=True, kw_only=True):
    """`benchmark_results.json`: the runbook's report. `aggregate` and `self_consistency_eval` are the first variant's."""

    schema_version: str = BENCHMARK_SCHEMA
    run_id: str
    system: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, Any]
    variant: str
    """Which variant `aggregate` is about: the reference."""
    aggregate: ExtractionAggregate
    self_consistency_eval: SelfConsistency | None = None
    variants: dict[str, VariantBenchmark]
    hints: tuple[Hint, ...] = ()
