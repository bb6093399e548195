"""What a single trial is worth: its outcome, its difference from a baseline, and whether it may become one. Pure."""

from __future__ import annotations

from fewbits.core.units import GIB
from fewbits.records.base import RunQuality, TrialStatus, Unavailable
from fewbits.records.baseline import BaselineMetadata, BaselineRecord, BaselineStatus, GoldTelemetry
from fewbits.records.trial import Trial


def outcome_of(trial: Trial) -> str:
    """Return `pass`, `fail` or `error` (no answer)."""
    if trial.status is not TrialStatus.OK:
        return "error"
    return "pass" if trial.adherence_score == 1.0 else "fail"


def gold_of(trial: Trial) -> GoldTelemetry:
    """Return what a trial measured, in a baseline's shape. Seconds of a polluted trial are no measurement."""
    clean = trial.run_quality_status is RunQuality.CLEAN and trial.status is TrialStatus.OK
    seconds = trial.telemetry.total_latency if clean else None
    score = trial.adherence_score
    return GoldTelemetry(
        adherence_score=score,
        peak_memory_rss=trial.telemetry.peak_memory_rss,
        total_latency=seconds,
        task_scores={trial.task_id: score} if score is not None else {},
        task_seconds={trial.task_id: seconds} if seconds is not None else {},
    )


def task_flaws(trial: Trial) -> tuple[str, ...]:
    """Return what speaks against a trial as a baseline; empty for a clean, passing one."""
    flaws = []
    if outcome_of(trial) == "error":
        flaws.append(f"TRIAL_{trial.status.value}")
    elif outcome_of(trial) == "fail":
        flaws.append("CHECKS_NOT_MET")
    if trial.run_quality_status is not RunQuality.CLEAN:
        flaws += [f"POLLUTED_{reason.value}" for reason in trial.run_quality_reasons]
    return tuple(flaws)


def task_record(trial: Trial, *, fingerprint: str, created_at: str, flaws: tuple[str, ...]) -> BaselineRecord:
    """Return a trial as a baseline record; with `flaws` it is marked as forced."""
    return BaselineRecord(
        baseline_metadata=BaselineMetadata(
            test_run_id=trial.trial_id[:12] + "-" + "".join(char for char in trial.started_at[:23] if char.isdigit()),
            model_id=trial.model_id,
            quant_tag=trial.quant_tag,
            model_hash=trial.variant_sha256 or "",
            hardware_fingerprint=fingerprint,
            task_revision=trial.task_digest,
            engine=trial.engine,
            engine_version=trial.engine_version,
            created_at=created_at,
            forced=bool(flaws),
            forced_because=flaws,
            source=trial.plan_digest,
        ),
        gold_telemetry=gold_of(trial),
    )


def vibe_delta(trial: Trial, status: BaselineStatus, gold: GoldTelemetry | None) -> tuple[float | None, str]:
    """Return quality lost per GiB of peak memory saved against the baseline, and `OK` or the reason for `None`."""
    if gold is None:
        return None, status.value
    if trial.adherence_score is None or gold.adherence_score is None:
        return None, Unavailable.NO_CHECKS.value
    if trial.telemetry.peak_memory_rss is None or gold.peak_memory_rss is None:
        return None, Unavailable.NO_SENSOR.value
    saved_gib = (gold.peak_memory_rss - trial.telemetry.peak_memory_rss) / GIB
    if saved_gib <= 0:
        return None, Unavailable.NOTHING_SAVED.value
    return round((gold.adherence_score - trial.adherence_score) / saved_gib, 6), BaselineStatus.OK.value
