"""Baselines: known-good results that later runs are compared with, matched by test, hardware and task revision."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Rate, Record
from fewbits.records.estimate import Estimate

HISTORY_SCHEMA = "fewbits.baseline_history.v1"
RESOLVED_SCHEMA = "fewbits.resolved_baselines.v1"

TestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]
"""Names a file, so it holds no slash and does not begin with a dot."""
Seconds = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]


class BaselineStatus(StrEnum):
    """Whether a baseline was found, or why not. Hardware is looked at before the task revision."""

    OK = "OK"
    NO_BASELINE = "NO_BASELINE"
    """Nothing was ever stored for this test."""
    HW_MISMATCH = "HW_MISMATCH"
    """There are records, none from this hardware."""
    REV_MISMATCH = "REV_MISMATCH"
    """There are records from this hardware, none of this task revision."""
    REF_NOT_FOUND = "REF_NOT_FOUND"
    """The record that was asked for by its reference is not there."""
    STORE_UNREADABLE = "STORE_UNREADABLE"
    """The baseline file is damaged: it was left as it is, and nothing was compared."""


class BaselineFlaw(StrEnum):
    """Why a result is not good enough to become a baseline on its own."""

    RUN_INCOMPLETE = "RUN_INCOMPLETE"
    """Trials of the plan are missing."""
    ROW_INVALID = "ROW_INVALID"
    POLLUTED = "POLLUTED"
    FAILED_TRIALS = "FAILED_TRIALS"
    """A trial was empty, timed out, crashed or broke the protocol."""
    ABOVE_LATENCY_CEILING = "ABOVE_LATENCY_CEILING"
    BELOW_ADHERENCE_LIMIT = "BELOW_ADHERENCE_LIMIT"


class GoldTelemetry(Record, frozen=True, kw_only=True):
    """What a known-good run measured. `None` where it was not measured."""

    adherence_score: Rate | None
    peak_memory_rss: Bytes | None
    """Bytes."""
    total_latency: Seconds | None
    """Median wall-clock seconds per trial."""
    task_scores: dict[str, Rate] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Task id -> mean adherence, for paired comparisons; empty where only a summary was at hand."""
    task_seconds: dict[str, Seconds] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Task id -> mean wall-clock seconds of its clean trials."""


class BaselineMetadata(Record, frozen=True, kw_only=True):
    """What a record is about and how it came to be."""

    test_run_id: Annotated[str, Meta(min_length=1, max_length=200)]
    """The record's reference: unique within its test."""
    model_id: str
    quant_tag: str
    model_hash: str
    """sha256 of the variant, or the server's digest; empty where neither is known."""
    hardware_fingerprint: str
    task_revision: str
    """Digest of the tasks that were asked; any change of a task makes another revision."""
    engine: str = ""
    engine_version: str = ""
    created_at: str
    """UTC, ISO 8601."""
    pinned: bool = False
    forced: bool = False
    """It was stored although it was not clean or did not pass."""
    forced_because: tuple[str, ...] = ()
    source: str = ""
    """Digest of the plan, or of the summary, that it was taken from."""


class BaselineRecord(Record, frozen=True, kw_only=True):
    """One entry of a test's history."""

    baseline_metadata: BaselineMetadata
    gold_telemetry: GoldTelemetry


class BaselineHistory(Record, frozen=True, kw_only=True):
    """The file `<root>/<test_id>.json`, oldest record first."""

    schema_version: str = HISTORY_SCHEMA
    test_id: TestId
    history: tuple[BaselineRecord, ...] = ()


class BaselineMatch(Record, frozen=True, kw_only=True):
    """What was found for one variant before its first trial: kept with the run, so that its summary can be rebuilt."""

    model_id: str
    quant_tag: str
    test_id: str
    status: BaselineStatus
    detail: str
    """One sentence: what was looked for, what is there."""
    record: BaselineRecord | None = None
    variant_hash: str = ""
    """What this run's variant is: its sha256, or the server's digest; empty where neither is known."""


class ResolvedBaselines(Record, frozen=True, kw_only=True):
    """The file `baselines.json` of a run."""

    schema_version: str = RESOLVED_SCHEMA
    task_revision: str
    matches: tuple[BaselineMatch, ...]


class BaselineComparison(Record, frozen=True, kw_only=True):
    """A row against its baseline: why there is a comparison or none, and the differences (row minus baseline)."""

    status: BaselineStatus
    detail: str
    test_id: str
    baseline_ref: str | None = None
    baseline_created_at: str | None = None
    same_weights: bool | None = None
    same_engine: bool | None = None
    adherence_difference: Estimate | None = None
    """Paired by task; without an interval where the record holds no scores by task."""
    latency_ratio: Estimate | None = None
    """Row / baseline mean seconds, paired by task."""
    memory_ratio: float | None = None
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults
