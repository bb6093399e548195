"""A store's upkeep, pure: what it holds, which records are still good, which ones retention drops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from fewbits.analysis.baselines import BaselineQuery, find_baseline, moment, newest_last
from fewbits.records.baseline import BaselineHistory, BaselineMetadata, BaselineRecord, BaselineStatus
from fewbits.records.baseline_upkeep import (
    BaselineTestHealth,
    BaselineTestOverview,
    HealthCounts,
    HealthScope,
    HealthSummary,
    UnreadableFile,
)
from fewbits.records.gates import GateCheck, GateStatus

_DAY_SECONDS = 86_400.0
_FUTURE_TOLERANCE_DAYS = 1.0
"""A record dated further ahead than this means that a clock is wrong, so its age says nothing."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What a history keeps: every pinned record, the newest `keep_last` others, and what is not older than `max_age_days`."""

    keep_last: int
    max_age_days: float | None
    now: datetime


def overview(history: BaselineHistory) -> BaselineTestOverview:
    """Sum one test up."""
    known = [record.baseline_metadata for record in newest_last(history.history)]
    latest = known[-1] if known else None
    return BaselineTestOverview(
        test_id=history.test_id,
        history_count=len(known),
        pinned_count=sum(record.pinned for record in known),
        forced_count=sum(record.forced for record in known),
        latest_test_run_id=latest.test_run_id if latest else None,
        latest_created_at=latest.created_at if latest else None,
        latest_hardware_fingerprint=latest.hardware_fingerprint if latest else None,
        latest_task_revision=latest.task_revision if latest else None,
    )


def out_of_order(history: BaselineHistory) -> tuple[str, ...]:
    """Return the references of records dated before one that was written earlier."""
    late: list[str] = []
    newest: datetime | None = None
    for record in history.history:
        created = moment(record.baseline_metadata.created_at)
        if newest is not None and created < newest:
            late.append(record.baseline_metadata.test_run_id)
        newest = created if newest is None else max(newest, created)
    return tuple(late)


def keep(history: BaselineHistory, rule: Retention) -> tuple[BaselineRecord, ...]:
    """Return the records that stay, in the file's order."""
    unpinned = [record for record in newest_last(history.history) if not record.baseline_metadata.pinned]
    droppable = unpinned[: -rule.keep_last] if rule.keep_last < len(unpinned) else []
    dropped = {
        record.baseline_metadata.test_run_id
        for record in droppable
        if rule.max_age_days is None or age_days(record.baseline_metadata, rule.now) > rule.max_age_days
    }
    return tuple(record for record in history.history if record.baseline_metadata.test_run_id not in dropped)


def age_days(known: BaselineMetadata, now: datetime) -> float:
    """Return days from a record's date to `now`; negative when it is dated ahead."""
    return (now - moment(known.created_at)).total_seconds() / _DAY_SECONDS


def check_unreadable(files: Sequence[UnreadableFile]) -> list[GateCheck]:
    """One failed check per file that cannot be read."""
    return [
        GateCheck(name="readable", subject=file.path, status=GateStatus.FAIL, code="UNREADABLE", evidence=file.reason)
        for file in files
    ]


def check_history(history: BaselineHistory, scope: HealthScope) -> list[GateCheck]:
    """Judge what `resolve` would find of a test, on each hardware, or on the one in scope. Older records are no checks."""
    return [check for hardware in _hardware_in_scope(history, scope) for check in _check_on(hardware, history, scope)]


def check_missing(test_id: str) -> GateCheck:
    """Judge a test that was named and has no file."""
    query = BaselineQuery(test_id, "", "")
    return _usable(find_baseline(None, query).detail, test_id, BaselineStatus.NO_BASELINE)


def _hardware_in_scope(history: BaselineHistory, scope: HealthScope) -> list[str]:
    if scope.hardware_fingerprint is not None:
        return [scope.hardware_fingerprint]
    return sorted({record.baseline_metadata.hardware_fingerprint for record in history.history}) or [""]


def _check_on(hardware: str, history: BaselineHistory, scope: HealthScope) -> Iterator[GateCheck]:
    subject = f"{history.test_id} on {hardware}" if hardware else history.test_id
    found = find_baseline(history, BaselineQuery(history.test_id, hardware, _anchor(history, scope, hardware).task_revision))
    yield _usable(found.detail, subject, found.status)
    if found.record is not None:
        yield _age(found.record.baseline_metadata, subject, scope)
        if scope.engine_version is not None:
            yield _engine(found.record.baseline_metadata, subject, scope.engine_version)


def _usable(detail: str, subject: str, status: BaselineStatus) -> GateCheck:
    good = status is BaselineStatus.OK
    return GateCheck(
        name="usable_baseline",
        subject=subject,
        status=GateStatus.PASS if good else GateStatus.FAIL,
        code="" if good else status.value,
        evidence=detail,
    )


def _age(known: BaselineMetadata, subject: str, scope: HealthScope) -> GateCheck:
    age = age_days(known, moment(scope.checked_at))
    status, code = GateStatus.PASS, ""
    words = f"{known.test_run_id} was stored {known.created_at}, {age:.1f} days ago; {scope.max_age_days:g} days are allowed"
    if age < -_FUTURE_TOLERANCE_DAYS:
        status, code = GateStatus.SKIP, "CLOCKS_DISAGREE"
        words = (
            f"{known.test_run_id} is dated {known.created_at}, {-age:.1f} days ahead: a clock is wrong, so its age is not known"
        )
    elif age > scope.max_age_days:
        status, code = GateStatus.FAIL, "TOO_OLD"
    return GateCheck(
        name="age_days",
        subject=subject,
        status=status,
        code=code,
        measured=round(age, 6) if status is not GateStatus.SKIP else None,
        limit=scope.max_age_days,
        evidence=words,
    )


def _engine(known: BaselineMetadata, subject: str, wanted: str) -> GateCheck:
    status, code = GateStatus.PASS, ""
    words = f"{known.test_run_id} was made by {known.engine or 'an engine'} {known.engine_version}, {wanted} is asked for"
    if not known.engine_version:
        status, code = GateStatus.SKIP, "ENGINE_NOT_KNOWN"
        words = f"{known.test_run_id} does not say which engine version made it"
    elif known.engine_version != wanted:
        status, code = GateStatus.FAIL, "ENGINE_SUPERSEDED"
    return GateCheck(name="engine_version", subject=subject, status=status, code=code, evidence=words)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What the records of one hardware are held against."""

    task_revision: str
    engine: tuple[str, str] | None
    """Name and version of the newest record; `None` where a version was asked for."""


def _anchor(history: BaselineHistory, scope: HealthScope, hardware: str) -> _Anchor:
    here = [
        record.baseline_metadata
        for record in newest_last(history.history)
        if record.baseline_metadata.hardware_fingerprint == hardware
    ]
    newest = here[-1] if here else None
    revision = scope.task_revision or (newest.task_revision if newest else "")
    engine = None if scope.engine_version is not None or newest is None else (newest.engine, newest.engine_version)
    return _Anchor(revision, engine)


def count_health(history: BaselineHistory, scope: HealthScope) -> BaselineTestHealth:
    """Count what is wrong with each record of a test."""
    known = [record.baseline_metadata for record in history.history]
    inside = [one for one in known if scope.hardware_fingerprint in (None, one.hardware_fingerprint)]
    anchors = {one.hardware_fingerprint: _anchor(history, scope, one.hardware_fingerprint) for one in inside}
    now = moment(scope.checked_at)
    old = [age_days(one, now) > scope.max_age_days for one in inside]
    engines = [_superseded(one, anchors[one.hardware_fingerprint], scope) for one in inside]
    revisions = [one.task_revision != anchors[one.hardware_fingerprint].task_revision for one in inside]
    return BaselineTestHealth(
        test_id=history.test_id,
        counts=HealthCounts(
            records=len(known),
            stale_records=sum(map(any, zip(old, engines, revisions, strict=True))),
            too_old_records=sum(old),
            superseded_engine_records=sum(engines),
            revision_mismatch_records=sum(revisions),
            hardware_mismatch_records=None if scope.hardware_fingerprint is None else len(known) - len(inside),
            forced_records=sum(one.forced for one in known),
            pinned_records=sum(one.pinned for one in known),
        ),
    )


def _superseded(one: BaselineMetadata, anchor: _Anchor, scope: HealthScope) -> bool:
    """Tell whether another engine made a record; one whose engine is not known is no evidence for that."""
    if not one.engine_version:
        return False
    if anchor.engine is None:
        return one.engine_version != scope.engine_version
    return bool(anchor.engine[1]) and (one.engine, one.engine_version) != anchor.engine


def sum_health(tests: Sequence[BaselineTestHealth], scope: HealthScope, unreadable: int) -> HealthSummary:
    """Add the tests' counts up."""

    def total(of: Callable[[HealthCounts], int | None]) -> int:
        return sum(of(test.counts) or 0 for test in tests)

    return HealthSummary(
        tests_total=len(tests),
        records_total=total(lambda counts: counts.records),
        stale_records_total=total(lambda counts: counts.stale_records),
        hardware_mismatch_records_total=total(lambda counts: counts.hardware_mismatch_records)
        if scope.hardware_fingerprint
        else None,
        revision_mismatch_records_total=total(lambda counts: counts.revision_mismatch_records),
        forced_records_total=total(lambda counts: counts.forced_records),
        pinned_records_total=total(lambda counts: counts.pinned_records),
        unreadable_files_total=unreadable,
    )
