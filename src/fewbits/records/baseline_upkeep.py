"""What the baseline commands answer: listings, outcomes of appending and pruning, health."""

from __future__ import annotations

from fewbits.records.base import Record
from fewbits.records.baseline import BaselineRecord
from fewbits.records.gates import GateReport


class UnreadableFile(Record, frozen=True, kw_only=True):
    """A file that was left as it is, because it cannot be read as a baseline history."""

    path: str
    reason: str


class BaselineTestOverview(Record, frozen=True, kw_only=True):
    """One test of the store. `latest_*` describe its newest record; `None` where the history is empty."""

    test_id: str
    history_count: int
    pinned_count: int
    forced_count: int
    latest_test_run_id: str | None
    latest_created_at: str | None
    latest_hardware_fingerprint: str | None
    latest_task_revision: str | None


class BaselineList(Record, frozen=True, kw_only=True):
    """Every test of a store, by name."""

    schema_version: str = "fewbits.baseline_list.v1"
    storage_root: str
    items: tuple[BaselineTestOverview, ...]
    unreadable: tuple[UnreadableFile, ...]


class BaselineShow(Record, frozen=True, kw_only=True):
    """One test's records, in the file's order."""

    schema_version: str = "fewbits.baseline_show.v1"
    test_id: str
    history: tuple[BaselineRecord, ...]
    out_of_order: tuple[str, ...]
    """References of records that are dated before a record that was written earlier: the clock ran backwards."""


class AppendOutcome(Record, frozen=True, kw_only=True):
    """What became of one row."""

    test_id: str
    model_id: str
    quant_tag: str
    appended: bool
    record: BaselineRecord | None
    """What was stored; `None` where it was refused."""
    reasons: tuple[str, ...]
    """Why it was refused, or what it was stored in spite of, one sentence each."""


class AppendReport(Record, frozen=True, kw_only=True):
    """What became of every row that was asked for."""

    schema_version: str = "fewbits.baseline_append.v1"
    storage_root: str
    source: str
    test_run_id: str
    task_revision: str
    outcomes: tuple[AppendOutcome, ...]
    failed: bool
    """Nothing was stored, a row that was named was refused, or a file of the store could not be used."""


class PinReport(Record, frozen=True, kw_only=True):
    """A record after pinning or unpinning."""

    schema_version: str = "fewbits.baseline_pin.v1"
    test_id: str
    baseline_ref: str
    pinned: bool
    changed: bool
    """False when it was so already."""


class PrunedTest(Record, frozen=True, kw_only=True):
    """What goes and what stays of one test: references, in the file's order."""

    test_id: str
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    kept_pinned: tuple[str, ...]
    """Those of `kept` that are pinned."""


class PruneReport(Record, frozen=True, kw_only=True):
    """What pruning did, or with `dry_run` would do."""

    schema_version: str = "fewbits.baseline_prune.v1"
    storage_root: str
    dry_run: bool
    keep_last: int
    max_age_days: float | None
    tests: tuple[PrunedTest, ...]


class HealthScope(Record, frozen=True, kw_only=True):
    """What records were held against. `None`: not asked for."""

    test_id: str | None = None
    hardware_fingerprint: str | None = None
    task_revision: str | None = None
    engine_version: str | None = None
    max_age_days: float = 90.0
    checked_at: str
    """UTC, ISO 8601: what ages are counted to."""


class HealthCounts(Record, frozen=True, kw_only=True):
    """Records by what is wrong with them; one record can be counted several times, except in `stale_records`."""

    records: int
    stale_records: int
    """Too old, or superseded by another engine or task revision."""
    too_old_records: int
    superseded_engine_records: int
    """Made by another engine version than the newest of the same test and hardware, or than the one that was asked for."""
    revision_mismatch_records: int
    """Of another task revision than the newest of the same test and hardware, or than the one that was asked for."""
    hardware_mismatch_records: int | None
    """From other hardware than was asked for, and judged no further; `None` where none was asked for."""
    forced_records: int
    pinned_records: int


class BaselineTestHealth(Record, frozen=True, kw_only=True):
    """The counts of one test."""

    test_id: str
    counts: HealthCounts


class HealthSummary(Record, frozen=True, kw_only=True):
    """The counts of a store. `hardware_mismatch_records_total` is `None` where no hardware was asked for."""

    tests_total: int
    records_total: int
    stale_records_total: int
    hardware_mismatch_records_total: int | None
    revision_mismatch_records_total: int
    forced_records_total: int
    pinned_records_total: int
    unreadable_files_total: int


class BaselineHealth(Record, frozen=True, kw_only=True):
    """How good a store's baselines still are: the gate's answer, and the counts beside it."""

    schema_version: str = "fewbits.baseline_health.v1"
    storage_root: str
    scope: HealthScope
    summary: HealthSummary
    per_test: tuple[BaselineTestHealth, ...]
    unreadable: tuple[UnreadableFile, ...]
    gate_report: GateReport
