"""The baseline store's use-cases: list, show, append, pin, check, prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fewbits.analysis.baseline_records import RecordOrigin, RowSource, holds_nothing, record_of, row_flaws, run_id_of
from fewbits.analysis.baseline_upkeep import (
    Retention,
    check_history,
    check_missing,
    check_unreadable,
    count_health,
    keep,
    out_of_order,
    overview,
    sum_health,
)
from fewbits.analysis.baselines import plan_revision, sweep_test_id
from fewbits.analysis.gate_report import build_report
from fewbits.analysis.trial_table import Group, build_table
from fewbits.api.sweeps import build_summary
from fewbits.core.codec import storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.baseline_upkeep import (
    AppendOutcome,
    AppendReport,
    BaselineHealth,
    BaselineList,
    BaselineShow,
    HealthScope,
    PinReport,
    PrunedTest,
    PruneReport,
)
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import Artifact
from fewbits.store.baselines import BaselineStore, StoreContent, check_run_id, check_test_id
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.store.summaries import read_summary


def utc_now() -> datetime:
    """Read the clock."""
    return datetime.now(UTC)


def iso(instant: datetime) -> str:
    """Write a moment the way trials do: UTC, ISO 8601, milliseconds."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds")


def list_baselines(root: Path, test_id: str | None = None) -> BaselineList:
    """Sum up every test, or the one named. Files that cannot be read are named beside the others."""
    content = _content(root, test_id)
    return BaselineList(
        storage_root=storable(str(root)),
        items=tuple(overview(stored.history) for stored in content.histories),
        unreadable=content.unreadable,
    )


def show_baseline(root: Path, test_id: str) -> BaselineShow:
    """Return a test's records. Raises `SpecError` when nothing is stored for it."""
    history = BaselineStore(root).read(test_id)
    if history is None:
        raise SpecError.single("--test-id", f"nothing is stored for {test_id}", "`fewbits baseline list` shows what there is")
    return BaselineShow(test_id=test_id, history=history.history, out_of_order=out_of_order(history))


def pin_baseline(root: Path, test_id: str, ref: str, *, pinned: bool) -> PinReport:
    """Pin a record, so that no pruning drops it, or unpin it. Raises `SpecError`, `StoreError`."""
    changed = BaselineStore(root).set_pinned(test_id, ref, pinned=pinned)
    return PinReport(test_id=test_id, baseline_ref=ref, pinned=pinned, changed=changed)


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Which rows of a source are stored, and how."""

    model_id: str | None = None
    quant_tag: str | None = None
    """A row that is named by its tag must be stored, or the command fails."""
    run_id: str | None = None
    """`None`: made from the source."""
    task_revision: str | None = None
    """For a summary whose tasks cannot be found otherwise."""
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    """A run folder, or a summary alone."""

    summary: SweepSummary
    digest: str
    """Of the plan, or of the summary's bytes."""
    task_revision: str
    groups: Mapping[tuple[str, str], Group] | None
    """Counted trials by (model id, quant tag); `None` for a summary alone."""
    artifacts: Mapping[tuple[str, str], Artifact]


def append_baselines(root: Path, source: Path, request: AppendRequest, now: datetime | None = None) -> AppendReport:
    """Store a source's rows as baselines: those that are good enough, with `force` the others too, marked.

    Raises `SpecError` and `StoreError` for a source or a request that cannot be used; what happens to a single row is an outcome.
    """
    if not source.exists():
        raise SpecError.single("SOURCE", f"there is no {source}", "give a run's folder, or a sweep_summary.json")
    opened = _open_run(source, request) if source.is_dir() else _open_summary(source, request)
    origin = RecordOrigin(
        test_run_id=_run_id(opened, request, source),
        task_revision=opened.task_revision,
        created_at=iso(now or utc_now()),
        source=opened.digest,
    )
    store = BaselineStore(root)
    results = [_append_row(store, opened, row, origin, request) for row in _chosen_rows(opened, request)]
    outcomes = tuple(outcome for outcome, _ in results)
    refused_by_name = request.quant_tag is not None and not all(outcome.appended for outcome in outcomes)
    return AppendReport(
        storage_root=storable(str(root)),
        source=storable(str(source)),
        test_run_id=origin.test_run_id,
        task_revision=origin.task_revision,
        outcomes=outcomes,
        failed=refused_by_name or not any(outcome.appended for outcome in outcomes) or any(broken for _, broken in results),
    )


def _open_run(source: Path, request: AppendRequest) -> _Source:
    directory = RunDirectory(source)
    summary = build_summary(directory)
    plan = directory.read_plan()
    if plan is None:  # build_summary has refused such a folder; it can only have vanished since
        msg = f"{source} has no plan.json any more."
        raise StoreError(msg)
    if request.task_revision not in (None, plan_revision(plan)):
        hint = f"leave it out; the plan's tasks are of revision {plan_revision(plan)}"
        raise SpecError.single("--task-revision", f"{source} is not of that task revision", hint)
    groups = build_table(plan, read_journal(directory.trials_path, TrialView).rows).groups
    return _Source(summary, plan.digest, plan_revision(plan), groups, directory.read_manifests())


def _open_summary(source: Path, request: AppendRequest) -> _Source:
    loaded = read_summary(source, "SOURCE")
    revision = _revision_beside(source, loaded.summary)
    if revision is not None and request.task_revision not in (None, revision):
        hint = f"leave it out; the plan beside the summary is of revision {revision}"
        raise SpecError.single("--task-revision", f"{source} is not of that task revision", hint)
    revision = revision or request.task_revision
    if revision is None:
        message = f"{source} does not say which revision its tasks have, and no plan.json of its run lies beside it"
        raise SpecError.single("SOURCE", message, "give the run's folder instead, or the revision with --task-revision")
    return _Source(loaded.summary, loaded.source.sha256, revision, None, {})


def _revision_beside(source: Path, summary: SweepSummary) -> str | None:
    """Return the task revision that a summary tells, or that of the plan beside it, if the summary was made by it."""
    if isinstance(known := summary.matrix.get("task_revision"), str):
        return known
    plan = RunDirectory(source.parent).read_plan()
    return plan_revision(plan) if plan is not None and plan.digest == summary.provenance.plan_digest else None


def _run_id(source: _Source, request: AppendRequest, path: Path) -> str:
    if request.run_id is not None:
        return check_run_id(request.run_id, "--run-id")
    try:
        return run_id_of(source.summary.provenance.plan_digest or source.digest, source.summary.provenance.first_trial_at)
    except ValueError as error:
        msg = f"{path}: the time of the first trial cannot be read: {error}. Give a reference with --run-id."
        raise StoreError(msg) from error


def _chosen_rows(source: _Source, request: AppendRequest) -> list[tuple[Session, QuantRow]]:
    rows = [(session, row) for session in source.summary.sessions for row in session.per_quant]
    chosen = [
        (session, row)
        for session, row in rows
        if request.model_id in (None, session.model_id) and request.quant_tag in (None, row.quant_tag)
    ]
    if not chosen:
        there = ", ".join(f"{session.model_id} {row.quant_tag}" for session, row in rows) or "no row at all"
        flag = "--model-id" if request.quant_tag is None else "--quant-tag"
        named = " ".join(name for name in (request.model_id, request.quant_tag) if name is not None)
        raise SpecError.single(flag, f"there is no row {named!r}", f"there is {there}")
    return chosen


def _append_row(
    store: BaselineStore, source: _Source, chosen: tuple[Session, QuantRow], origin: RecordOrigin, request: AppendRequest
) -> tuple[AppendOutcome, bool]:
    """Store one row or say why not; also returns whether the store itself was at fault."""
    session, row = chosen
    key = (session.model_id, row.quant_tag)
    flaws = row_flaws(source.summary, session, row)
    manifest = source.artifacts.get(key)
    group = (source.groups.get(key) or Group(())) if source.groups is not None else None
    record = record_of(
        RowSource(session, row, group, manifest.server_digest if manifest else None), source.summary, origin, flaws
    )
    reasons, broken, appended = tuple(flaws.values()), False, False
    if holds_nothing(record):
        reasons = (*reasons, "nothing was measured, so there would be nothing to compare with")
    elif not flaws or request.force:
        try:
            store.append(sweep_test_id(*key), record)
            appended = True
        except SpecError as error:
            reasons = tuple(f"{problem.message} ({problem.hint})" for problem in error.problems)
        except StoreError as error:
            reasons, broken = (storable(str(error)),), True
    outcome = AppendOutcome(
        test_id=sweep_test_id(*key),
        model_id=session.model_id,
        quant_tag=row.quant_tag,
        appended=appended,
        record=record if appended else None,
        reasons=reasons,
    )
    return outcome, broken


def health_scope(
    *,
    test_id: str | None = None,
    hardware_fingerprint: str | None = None,
    task_revision: str | None = None,
    engine_version: str | None = None,
    max_age_days: float,
    now: datetime | None = None,
) -> HealthScope:
    """Say what to hold records against, now."""
    return HealthScope(
        test_id=test_id,
        hardware_fingerprint=hardware_fingerprint,
        task_revision=task_revision,
        engine_version=engine_version,
        max_age_days=max_age_days,
        checked_at=iso(now or utc_now()),
    )


def check_baselines(root: Path, scope: HealthScope, *, allow_skip: bool = False) -> BaselineHealth:
    """Judge every test, or the one in scope: is what `resolve` would find still good? Older records are only counted."""
    content = _content(root, scope.test_id)
    histories = [stored.history for stored in content.histories]
    tests = [count_health(history, scope) for history in histories]
    checks = check_unreadable(content.unreadable) + [check for history in histories for check in check_history(history, scope)]
    if scope.test_id is not None and not checks:
        checks = [check_missing(scope.test_id)]
    thresholds: dict[str, float | str | None] = {
        "max_age_days": scope.max_age_days,
        "checked_at": scope.checked_at,
        "hardware_fingerprint": scope.hardware_fingerprint,
        "task_revision": scope.task_revision,
        "engine_version": scope.engine_version,
    }
    return BaselineHealth(
        storage_root=storable(str(root)),
        scope=scope,
        summary=sum_health(tests, scope, len(content.unreadable)),
        per_test=tuple(tests),
        unreadable=content.unreadable,
        gate_report=build_report(
            "baseline_health",
            checks,
            sources=[stored.source for stored in content.histories],
            thresholds=thresholds,
            allow_skip=allow_skip,
        ),
    )


def retention(keep_last: int, max_age_days: float | None = None, now: datetime | None = None) -> Retention:
    """Say what pruning keeps, now."""
    return Retention(keep_last, max_age_days, now or utc_now())


def prune_baselines(root: Path, rule: Retention, *, test_id: str | None, dry_run: bool) -> PruneReport:
    """Drop what the rule does not keep, of every test or of the one named. Nothing is dropped while a file cannot be read."""
    content = _content(root, test_id)
    if content.unreadable:
        reasons = "\n".join(f"  - {file.path}: {file.reason}" for file in content.unreadable)
        msg = f"nothing was pruned, because not every file can be read:\n{reasons}"
        raise StoreError(msg)
    if test_id is not None and not content.histories:
        raise SpecError.single("--test-id", f"nothing is stored for {test_id}", "`fewbits baseline list` shows what there is")
    store, tests = BaselineStore(root), []
    for stored in content.histories:
        before, kept = stored.history, keep(stored.history, rule)
        if not dry_run:
            before, kept = store.retain(stored.history.test_id, lambda history: keep(history, rule))
        stay = [record.baseline_metadata for record in kept]
        refs = {known.test_run_id for known in stay}
        tests.append(
            PrunedTest(
                test_id=before.test_id,
                dropped=tuple(ref for record in before.history if (ref := record.baseline_metadata.test_run_id) not in refs),
                kept=tuple(known.test_run_id for known in stay),
                kept_pinned=tuple(known.test_run_id for known in stay if known.pinned),
            )
        )
    return PruneReport(
        storage_root=storable(str(root)),
        dry_run=dry_run,
        keep_last=rule.keep_last,
        max_age_days=rule.max_age_days,
        tests=tuple(tests),
    )


def _content(root: Path, test_id: str | None) -> StoreContent:
    """Read the whole store, or the file of one test."""
    if test_id is not None:
        check_test_id(test_id)
    return BaselineStore(root).read_all(test_id)
