"""How well reports were read: counts of fields, rates with intervals, and what a benchmark of a pipeline adds up to."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Rate, Record
from fewbits.records.estimate import Estimate

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class FieldCounts(Record, frozen=True, kw_only=True):
    """Fields that were read right, read wrongly or invented, and not read. Rates are `None` where nothing is to be divided by.

    precision = tp / (tp + fp), recall = tp / (tp + fn), f1 = 2 tp / (2 tp + fp + fn).
    """

    true_positive: Count = 0
    false_positive: Count = 0
    false_negative: Count = 0
    precision: Rate | None = None
    recall: Rate | None = None
    """Also called sensitivity."""
    f1: Rate | None = None


class Share(Record, frozen=True, kw_only=True):
    """`correct` of `total`; `value` is `None` where `total` is 0."""

    correct: Count = 0
    total: Count = 0
    value: Rate | None = None


class FieldMetrics(Record, frozen=True, kw_only=True):
    """One or more pages compared with the truth; `extraction.metrics` defines every number. Sums of counts are micro averages."""

    predicted_tests: Count
    true_tests: Count
    matched_tests: Count
    names: FieldCounts
    fields: FieldCounts
    value_accuracy: Share
    unit_accuracy: Share
    range_accuracy: Share
    flag_accuracy: Share
    abnormal_flags: FieldCounts
    critical_flags: FieldCounts
    """`recall` is the sensitivity: the share of the critical results that were reported as such."""
    report_fields: dict[str, FieldCounts] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Patient, laboratory, date and type of report, by field; empty in breakdowns by panel or test."""


class PageMetrics(Record, frozen=True, kw_only=True):
    """One page of a labelled set: its file, how hard it is, and how it was read."""

    page: Annotated[str, Meta(min_length=1)]
    level: str | None = None
    metrics: FieldMetrics


class ExtractionRates(Record, frozen=True, kw_only=True):
    """Micro-averaged rates over pages with intervals by page; `None` where no page has anything to divide by."""

    pages: Count
    counts: FieldMetrics
    field_f1: Estimate | None = None
    field_precision: Estimate | None = None
    field_recall: Estimate | None = None
    name_f1: Estimate | None = None
    value_accuracy: Estimate | None = None
    unit_accuracy: Estimate | None = None
    range_accuracy: Estimate | None = None
    flag_accuracy: Estimate | None = None
    abnormal_sensitivity: Estimate | None = None
    abnormal_precision: Estimate | None = None
    critical_sensitivity: Estimate | None = None
    critical_precision: Estimate | None = None


class GroupRates(Record, frozen=True, kw_only=True):
    """A panel or a test over all pages that have it, with intervals by page."""

    pages: Count
    counts: FieldMetrics
    field_f1: Estimate | None = None
    value_accuracy: Estimate | None = None


class RateDifference(Record, frozen=True, kw_only=True):
    """A variant's rate less the reference's on the same pages. `pages_that_differ` says how much the interval stands on."""

    estimate: Estimate | None
    pages_that_differ: Count


class ExtractionDifference(Record, frozen=True, kw_only=True):
    """A variant against the reference on the same pages."""

    pages: Count
    field_f1: RateDifference
    value_accuracy: RateDifference
    critical_sensitivity: RateDifference


class SelfConsistency(Record, frozen=True, kw_only=True):
    """Mean agreement of runs with different sampling seeds; `estimate` is `None` where `reason` says why."""

    estimate: Estimate | None
    reason: str = ""
    runs_per_page: Count = 0
    """The fewest among pages."""
    pages: dict[str, Rate | None] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class MeasuredRun(Record, frozen=True, kw_only=True):
    """What the aggregate needs of one timed repetition of one input. Memory in MiB; `None` where it was not measured."""

    success: bool
    error_kind: str | None = None
    pipeline_seconds: Seconds
    wall_seconds: Seconds
    tests: Count
    stage_seconds: dict[str, Seconds] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    gpu_peak_mb: float | None = None
    memory_peak_mb: float | None = None


class ExtractionAggregate(Record, frozen=True, kw_only=True):
    """All measured runs of a benchmark. Times in seconds; `None` without runs. Failed runs are in every number."""

    total_runs: Count
    benchmark_wall_time_seconds: Seconds
    """Of the measured loop as a whole, what lies between the runs included: the denominator of both throughputs."""
    success_rate: Rate | None
    avg_pipeline_time_seconds: float | None
    p50_pipeline_time_seconds: float | None
    p95_pipeline_time_seconds: float | None
    avg_wall_time_seconds: float | None
    p50_wall_time_seconds: float | None
    p95_wall_time_seconds: float | None
    avg_tests_extracted: float | None
    images_per_second: float | None
    tests_per_second: float | None
    stage_time_share: dict[str, Rate] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Share of the summed wall time of the runs, by stage; `other` is what no stage accounts for."""
    errors_by_kind: dict[str, Count] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    gpu_peak_mb: float | None = None
    memory_peak_mb: float | None = None


class HintCode(StrEnum):
    """What a benchmark's numbers suggest. Source: the runbook, "Interpreting results quickly"."""

    NO_RUNS = "NO_RUNS"
    PREFER_P95 = "PREFER_P95"
    SLOW_TAIL = "SLOW_TAIL"
    FEW_RUNS = "FEW_RUNS"
    FAILED_RUNS = "FAILED_RUNS"
    HOST_BOUND = "HOST_BOUND"
    """Most of the time goes to preparation and Python, not to the engine."""
    ENGINE_BOUND = "ENGINE_BOUND"
    AGAINST_REFERENCE = "AGAINST_REFERENCE"


class Hint(Record, frozen=True, kw_only=True):
    """One computed hint: a sentence, and the numbers that it rests on."""

    code: HintCode
    text: str
    numbers: dict[str, float] = {}  # noqa: RUF012 - msgspec copies mutable defaults
