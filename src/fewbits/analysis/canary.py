"""The canary gate: is this machine, right now, steady enough for the matrix to mean anything?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewbits.analysis.attempts import is_disturbed
from fewbits.analysis.statistics import rounded
from fewbits.analysis.wording import count, listed, percent
from fewbits.records.base import COMPLETE_TELEMETRY, PollutionReason, TrialStatus
from fewbits.records.plan import CanaryPolicy
from fewbits.records.summary import CanaryBlock, CanaryReason
from fewbits.records.trial import TrialView

MIN_LATENCY_SAMPLES = 3
"""Two samples always look steady: a coefficient of variation needs at least three."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The repeats that count, in run order, and what they show."""

    kept: tuple[TrialView, ...]
    disturbed: int
    failed: int
    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    used: tuple[float, ...]
    missing_rate: float | None
    controls_differ: bool

    @property
    def adherence_variance(self) -> float | None:
        """Population variance; exactly 0 for equal scores, whatever the rounding of their mean."""
        if not self.scores:
            return None
        return 0.0 if len(set(self.scores)) == 1 else float(np.var(self.scores))

    @property
    def latency_variation(self) -> float | None:
        """Sample standard deviation / mean of model-internal seconds."""
        mean = float(np.mean(self.used)) if self.used else 0.0
        if len(self.used) < MIN_LATENCY_SAMPLES or mean <= 0:
            return None
        return float(np.std(self.used, ddof=1)) / mean

    @property
    def same_output_rate(self) -> float | None:
        """Share of successful repeats that gave the most frequent text."""
        outputs = Counter(trial.output_sha256 for trial in self.kept if trial.status is TrialStatus.OK)
        return max(outputs.values()) / outputs.total() if outputs else None


def judge_canary(
    trials: Sequence[TrialView],
    policy: CanaryPolicy,
    *,
    model_id: str | None,
    quant_tag: str | None,
    task_id: str | None,
    worst_foreign_cpu_ratio: float | None = None,
) -> CanaryBlock:
    """Judge the repeats of one cell. Order of `trials` does not matter: they are taken by `index`, then `attempt`.

    Repeats that foreign load disturbed are left out, as long as there are at most `policy.max_polluted_retries` of them.
    `worst_foreign_cpu_ratio` (0..1, where known) only makes the advice concrete. `policy.runs = 0` gives a block with
    `enabled` false and `passed` `None`.
    """
    evidence = _gather(trials, policy)
    reasons = _reasons(evidence, policy) if policy.runs else ()
    return CanaryBlock(
        enabled=policy.runs > 0,
        passed=not reasons if policy.runs else None,
        model_id=model_id,
        quant_tag=quant_tag,
        task_id=task_id,
        runs_requested=policy.runs,
        runs_made=len(trials),
        latency_sample_count_raw=len(evidence.seconds),
        latency_sample_count_used=len(evidence.used),
        drop_first_run=policy.drop_first_run,
        polluted_retries=evidence.disturbed,
        adherence_variance=_kept_above_zero(evidence.adherence_variance),
        latency_variation=rounded(evidence.latency_variation),
        latency_variance_threshold=policy.max_latency_variation,
        missing_telemetry_rate=rounded(evidence.missing_rate),
        max_missing_telemetry_rate=policy.max_missing_telemetry_rate,
        same_output_rate=rounded(evidence.same_output_rate),
        failed_reasons=tuple(sorted(reasons)),
        remedies=tuple(_remedy(reason, evidence, policy, worst_foreign_cpu_ratio) for reason in sorted(reasons)),
    )


def _kept_above_zero(variance: float | None) -> float | None:
    """Round, but never round a difference away: the gate asks for exactly 0."""
    value = rounded(variance)
    return 1e-6 if value == 0 and variance else value


def _gather(trials: Sequence[TrialView], policy: CanaryPolicy) -> _Evidence:
    ordered = sorted(trials, key=lambda trial: (trial.index, trial.repetition, trial.attempt))
    kept = tuple(trial for trial in ordered if not is_disturbed(trial))
    replied = [trial for trial in kept if trial.status in {TrialStatus.OK, TrialStatus.EMPTY}]
    missing = sum(trial.telemetry.token_metrics.status not in COMPLETE_TELEMETRY for trial in replied)
    timed = [
        trial.telemetry.internal_model_seconds
        for trial in kept[1 if policy.drop_first_run else 0 :]
        if trial.telemetry.internal_model_seconds is not None
    ]
    return _Evidence(
        kept=kept,
        disturbed=len(ordered) - len(kept),
        failed=sum(trial.status is not TrialStatus.OK for trial in kept),
        scores=tuple(trial.adherence_score for trial in kept if trial.adherence_score is not None),
        seconds=tuple(s for trial in kept if (s := trial.telemetry.internal_model_seconds) is not None),
        used=tuple(timed),
        missing_rate=missing / len(replied) if replied else (1.0 if kept else None),
        controls_differ=any(PollutionReason.CONTROLS_NOT_APPLIED in trial.run_quality_reasons for trial in kept),
    )


def _reasons(evidence: _Evidence, policy: CanaryPolicy) -> tuple[CanaryReason, ...]:
    variation = evidence.latency_variation
    rules = {
        CanaryReason.ADHERENCE_VARIANCE_NON_ZERO: (evidence.adherence_variance or 0.0) > 0,
        CanaryReason.CONTROLS_NOT_APPLIED: evidence.controls_differ,
        CanaryReason.FAILED_TRIALS: evidence.failed > 0,
        CanaryReason.FOREIGN_LOAD: evidence.disturbed > policy.max_polluted_retries,
        CanaryReason.LATENCY_VARIANCE_THRESHOLD_EXCEEDED: variation is not None and variation > policy.max_latency_variation,
        CanaryReason.LATENCY_VARIANCE_UNAVAILABLE: variation is None,
        CanaryReason.MISSING_TELEMETRY_RATE_EXCEEDED: evidence.missing_rate is None
        or evidence.missing_rate > policy.max_missing_telemetry_rate,
        CanaryReason.NO_ADHERENCE_SCORES: not evidence.scores,
        CanaryReason.TOO_FEW_CLEAN_RUNS: len(evidence.kept) < policy.runs,
        CanaryReason.TOO_FEW_LATENCY_SAMPLES: len(evidence.used) < MIN_LATENCY_SAMPLES,
    }
    return tuple(reason for reason, applies in rules.items() if applies)


def _remedy(reason: CanaryReason, evidence: _Evidence, policy: CanaryPolicy, foreign: float | None) -> str:
    load = f" took up to {percent(foreign)} of the CPU" if foreign is not None else " disturbed the repeats"
    missing = 1.0 if evidence.missing_rate is None else evidence.missing_rate
    needed = MIN_LATENCY_SAMPLES + (1 if policy.drop_first_run else 0)
    statuses = sorted({trial.status.value for trial in evidence.kept if trial.status is not TrialStatus.OK})
    sentences = {
        CanaryReason.ADHERENCE_VARIANCE_NON_ZERO: (
            f"The same question scored between {percent(min(evidence.scores, default=0))} and "
            f"{percent(max(evidence.scores, default=0))}: set the temperature to 0, fix the seed and use one server slot."
        ),
        CanaryReason.CONTROLS_NOT_APPLIED: (
            "The engine runs with other threads, affinity, seed or context than asked for: ask for what this machine and "
            "server can give."
        ),
        CanaryReason.FAILED_TRIALS: (
            f"{count(evidence.failed, 'repeat')} ended as {listed(statuses)}: read the failure in canary.jsonl and mend that."
        ),
        CanaryReason.FOREIGN_LOAD: (
            f"Other programs{load} and spoiled {count(evidence.disturbed, 'repeat')}, more than the "
            f"{policy.max_polluted_retries} that may be run again: close them and start again."
        ),
        CanaryReason.LATENCY_VARIANCE_THRESHOLD_EXCEEDED: _unsteady(evidence, policy, foreign),
        CanaryReason.LATENCY_VARIANCE_UNAVAILABLE: (
            "There are too few model-internal times to compare: use a runtime that reports timings and at least "
            f"--canary-runs {max(needed, policy.runs)}."
        ),
        CanaryReason.MISSING_TELEMETRY_RATE_EXCEEDED: (
            f"{percent(missing)} of the repeats came without token counts or timings "
            f"(limit {percent(policy.max_missing_telemetry_rate)}): use a runtime that reports both."
        ),
        CanaryReason.NO_ADHERENCE_SCORES: "No repeat was scored: choose a canary task that has checks.",
        CanaryReason.TOO_FEW_CLEAN_RUNS: (
            f"Only {len(evidence.kept)} of {policy.runs} repeats ran undisturbed: wait for a quiet moment and start again."
        ),
        CanaryReason.TOO_FEW_LATENCY_SAMPLES: (
            f"Only {count(len(evidence.used), 'time')} to compare, at least {MIN_LATENCY_SAMPLES} are needed: "
            f"use --canary-runs {needed} or more."
        ),
    }
    return sentences[reason]


def _unsteady(evidence: _Evidence, policy: CanaryPolicy, foreign: float | None) -> str:
    variation = evidence.latency_variation or 0.0
    culprit = f" (foreign load was up to {percent(foreign)} of the CPU)" if foreign is not None else ""
    return (
        f"Model time varied by {percent(variation)}, the limit is {percent(policy.max_latency_variation)}: close other "
        f"programs{culprit}, let the machine cool down, pick a longer canary task, "
        f"or raise --canary-latency-variance-threshold above {variation:.3f}."
    )
