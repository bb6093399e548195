"""From a sweep's row to a baseline record: what must hold for it to be a known-good result, and what is stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from fewbits.analysis.baselines import engine_words, moment
from fewbits.analysis.trial_table import Group
from fewbits.analysis.wording import count, listed, percent
from fewbits.core.units import format_seconds
from fewbits.records.base import RunQuality
from fewbits.records.baseline import BaselineFlaw, BaselineMetadata, BaselineRecord, GoldTelemetry
from fewbits.records.plan import SelectionPolicy
from fewbits.records.summary import QuantRow, Session, SweepSummary


@dataclass(frozen=True, slots=True)
class RowSource:
    """A row, and what its record says beside its numbers."""

    session: Session
    row: QuantRow
    group: Group | None
    """The row's counted trials; `None` where only a summary is at hand."""
    server_digest: str | None = None


@dataclass(frozen=True, slots=True)
class RecordOrigin:
    """What the records of one source have in common."""

    test_run_id: str
    task_revision: str
    created_at: str
    """UTC, ISO 8601."""
    source: str
    """Digest of the plan or the summary."""


def row_flaws(summary: SweepSummary, session: Session, row: QuantRow) -> dict[BaselineFlaw, str]:
    """Return why a row is not good enough to be stored as it is: flaw -> one sentence with the numbers."""
    counts = row.status_counts
    failed = {name: number for name, number in msgspec.structs.asdict(counts).items() if name != "ok" and number}
    policy = session.selection_policy or summary.selection_policy
    found: dict[BaselineFlaw, str] = {}
    if not summary.complete:
        words = f"the run is not complete: {summary.trials_counted} of {summary.trials_expected} trials are in"
        found[BaselineFlaw.RUN_INCOMPLETE] = words
    if not row.valid:
        found[BaselineFlaw.ROW_INVALID] = f"the row is not valid: {listed(row.invalid_reasons)}"
    if row.run_quality_status is not RunQuality.CLEAN:
        share = f"{percent(row.polluted_run_rate)} of its trials are polluted"
        reasons = listed([reason.value for reason in row.run_quality_reasons])
        found[BaselineFlaw.POLLUTED] = f"{share} ({reasons})" if reasons else share
    if failed:
        words = listed([f"{number} {name.replace('_', ' ')}" for name, number in sorted(failed.items())])
        found[BaselineFlaw.FAILED_TRIALS] = f"{count(sum(failed.values()), 'trial')} failed: {words}"
    return found | _limits_missed(row, session, policy)


def _limits_missed(row: QuantRow, session: Session, policy: SelectionPolicy) -> dict[BaselineFlaw, str]:
    found: dict[BaselineFlaw, str] = {}
    if not row.meets_latency:
        latency = "no latency is known" if row.total_latency is None else f"median latency {format_seconds(row.total_latency)}"
        found[BaselineFlaw.ABOVE_LATENCY_CEILING] = f"{latency}, the ceiling is {format_seconds(policy.latency_ceiling)}"
    if not row.meets_adherence:
        score = "no adherence is known" if row.adherence_score is None else f"adherence {row.adherence_score:.3f}"
        minimum = session.efficiency_frontier.minimum_adherence
        bar = "there is no limit, because the reference has no score" if minimum is None else f"the limit is {minimum:.3f}"
        found[BaselineFlaw.BELOW_ADHERENCE_LIMIT] = f"{score}, {bar}"
    return found


def run_id_of(digest: str, first_trial_at: str | None) -> str:
    """Return the default reference of a run's records: its digest's first 12 digits, and when it began.

    The same run always has the same reference. Raises `ValueError` when the time cannot be read.
    """
    if first_trial_at is None:
        return digest[:12]
    began = moment(first_trial_at)
    return f"{digest[:12]}-{began:%Y%m%dT%H%M%S}{began.microsecond // 1000:03d}"


def record_of(
    source: RowSource, summary: SweepSummary, origin: RecordOrigin, flaws: Mapping[BaselineFlaw, str]
) -> BaselineRecord:
    """Return what is stored of a row; with flaws it is marked as forced."""
    row, session, group = source.row, source.session, source.group
    engine, version = (session.engine, session.engine_version) if group is None else group_engine(group)
    return BaselineRecord(
        baseline_metadata=BaselineMetadata(
            test_run_id=origin.test_run_id,
            model_id=session.model_id,
            quant_tag=row.quant_tag,
            model_hash=row.variant_sha256 or source.server_digest or "",
            hardware_fingerprint=summary.hardware_fingerprint,
            task_revision=origin.task_revision,
            engine=engine,
            engine_version=version,
            created_at=origin.created_at,
            forced=bool(flaws),
            forced_because=tuple(flaw.value for flaw in flaws),
            source=origin.source,
        ),
        gold_telemetry=GoldTelemetry(
            adherence_score=row.adherence_score,
            peak_memory_rss=row.peak_memory_rss,
            total_latency=row.total_latency,
            task_scores={} if group is None else group.task_means(group.scores, np.ones(len(group.trials), dtype=np.bool_)),
            task_seconds={} if group is None else group.task_means(group.wall, group.ok & group.clean),
        ),
    )


def group_engine(group: Group) -> tuple[str, str]:
    """Return the engine and version that ran a row's trials."""
    return engine_words(zip(group.values("engine"), group.values("engine_version"), strict=True))


def holds_nothing(record: BaselineRecord) -> bool:
    """Tell whether nothing at all was measured, so that there is nothing to compare with."""
    gold = record.gold_telemetry
    return gold.adherence_score is None and gold.total_latency is None and gold.peak_memory_rss is None
