"""From the journal of repeated runs to the determinism report and its gate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fewbits.analysis.canary import MIN_LATENCY_SAMPLES, judge_canary
from fewbits.analysis.determinism import CHANNELS, OUTCOME, agreement_floor, describe_divergence, first_differing_pair
from fewbits.analysis.statistics import rounded
from fewbits.analysis.wording import count, percent
from fewbits.records.base import RunQuality, TrialStatus
from fewbits.records.determinism import DeterminismNote, DeterminismReport, HarnessRun, TaskDeterminism
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.plan import CanaryPolicy, Plan
from fewbits.records.summary import CanaryBlock
from fewbits.records.trial import TrialView

_OUTPUTS = tuple(name for name in CHANNELS if name != OUTCOME)


def determinism_report(plan: Plan, trials: Sequence[TrialView], texts: Mapping[str, str]) -> DeterminismReport:
    """Judge the runs of a plan with one model and one quant, in any order. `texts` maps trial ids to outputs."""
    ordered = sorted(trials, key=lambda trial: (trial.task_id, trial.repetition, trial.attempt))
    by_task = {task.task_id: [trial for trial in ordered if trial.task_id == task.task_id] for task in plan.tasks}
    tasks = tuple(_judge_task(task_id, runs, texts) for task_id, runs in by_task.items())
    determinable = [task for task in tasks if task.deterministic is not None]
    repeating = sum(task.deterministic is True for task in determinable)
    first = ordered[0] if ordered else None
    return DeterminismReport(
        task_bank=plan.spec.task_bank,
        task_bank_digest=plan.task_bank_digest,
        model_id=plan.spec.models[0],
        quant_tag=plan.spec.quants[0],
        variant_sha256=first.variant_sha256 if first else None,
        engine=first.engine if first else "",
        engine_version=first.engine_version if first else "",
        hardware_fingerprint=plan.hardware_fingerprint,
        execution_lane=plan.spec.execution_lane,
        plan_digest=plan.digest,
        experimental_controls=plan.controls,
        channels=tuple(CHANNELS),
        runs_per_task=plan.spec.runs_per_quant,
        total_tasks=len(tasks),
        determinable_tasks=len(determinable),
        deterministic_tasks=repeating,
        determinism_rate=rounded(repeating / len(determinable)) if determinable else None,
        agreement_floor=rounded(agreement_floor(repeating, len(determinable))) if determinable else None,
        failed_runs=sum(trial.status is not TrialStatus.OK for trial in ordered),
        polluted_runs=sum(trial.run_quality_status is RunQuality.POLLUTED for trial in ordered),
        canary=_canary(plan, ordered),
        tasks=tasks,
        test_runs=tuple(_run(trial) for trial in ordered),
    )


def differing_trials(trials: Sequence[TrialView]) -> frozenset[str]:
    """Return the trials whose texts `determinism_report` would like to see: the first differing pair of each task."""
    groups: dict[str, list[TrialView]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.repetition, trial.attempt)):
        if trial.status is TrialStatus.OK:
            groups.setdefault(trial.task_id, []).append(trial)
    pairs = [pair for runs in groups.values() if (pair := first_differing_pair((tuple(runs),))) is not None]
    return frozenset(trial.trial_id for pair in pairs for trial in pair)


def _judge_task(task_id: str, runs: Sequence[TrialView], texts: Mapping[str, str]) -> TaskDeterminism:
    answered = [trial for trial in runs if trial.status is TrialStatus.OK]
    outputs = {tuple(CHANNELS[name](trial) for name in _OUTPUTS) for trial in answered}
    scores = [trial.adherence_score for trial in answered if trial.adherence_score is not None]
    repeats = len(answered) > 1
    pair = first_differing_pair((tuple(answered),)) if repeats else None
    return TaskDeterminism(
        test_id=task_id,
        runs=len(runs),
        answered_runs=len(answered),
        unique_outputs=len(outputs),
        deterministic=pair is None if repeats else None,
        same_outcome=len(set(scores)) == 1 if repeats and scores else None,
        adherence_variance=_variance(scores) if repeats else None,
        latency_variation=_variation(answered),
        notes=_notes(len(runs), len(answered)),
        first_divergence=describe_divergence(pair, texts) if pair is not None else None,
    )


def _notes(runs: int, answered: int) -> tuple[DeterminismNote, ...]:
    notes = []
    if runs < 2:
        notes.append(DeterminismNote.SINGLE_RUN)
    elif answered < 2:
        notes.append(DeterminismNote.NO_SUCCESSFUL_REPEATS)
    if answered < runs:
        notes.append(DeterminismNote.FAILED_RUNS)
    return tuple(notes)


def _variance(scores: Sequence[float]) -> float | None:
    if not scores:
        return None
    return 0.0 if len(set(scores)) == 1 else float(np.var(scores))


def _variation(answered: Sequence[TrialView]) -> float | None:
    seconds = [value for trial in answered if (value := trial.telemetry.internal_model_seconds) is not None]
    if len(seconds) < MIN_LATENCY_SAMPLES or np.mean(seconds) <= 0:
        return None
    return rounded(float(np.std(seconds, ddof=1) / np.mean(seconds)))


def _canary(plan: Plan, ordered: Sequence[TrialView]) -> CanaryBlock | None:
    """Judge the repeats of a single task as the canary gate would; `None` where there are several tasks or too few repeats."""
    runs = plan.spec.runs_per_quant
    if len(plan.tasks) != 1 or runs < MIN_LATENCY_SAMPLES + 1:
        return None
    policy = CanaryPolicy(runs=runs, max_latency_variation=plan.spec.canary.max_latency_variation)
    return judge_canary(
        ordered, policy, model_id=plan.spec.models[0], quant_tag=plan.spec.quants[0], task_id=plan.tasks[0].task_id
    )


def _run(trial: TrialView) -> HarnessRun:
    answered = trial.status is TrialStatus.OK
    outcome = "error" if not answered else "pass" if trial.adherence_score == 1.0 else "fail"
    return HarnessRun(
        test_id=trial.task_id,
        run_index=trial.repetition,
        outcome=outcome,
        status=trial.status,
        adherence_score=trial.adherence_score,
        output_sha256=trial.output_sha256,
        total_latency=trial.telemetry.total_latency,
        internal_model_seconds=trial.telemetry.internal_model_seconds,
        run_quality_status=trial.run_quality_status,
        run_quality_reasons=trial.run_quality_reasons,
    )


def check_determinism(report: DeterminismReport, *, with_canary: bool) -> tuple[GateCheck, ...]:
    """Return one check per task, and the canary's where it is asked for."""
    checks = [_check_task(task) for task in report.tasks]
    if with_canary:
        checks.append(_check_canary(report.canary))
    return tuple(checks)


def _check_task(task: TaskDeterminism) -> GateCheck:
    status, code = GateStatus.PASS, ""
    words = f"{count(task.answered_runs, 'run')} gave the same answer"
    if task.deterministic is False:
        status, code = GateStatus.FAIL, "OUTPUT_DIFFERS"
        words = f"{task.unique_outputs} different answers in {count(task.answered_runs, 'run')}"
        if task.unique_outputs == 1:
            words = f"{count(task.answered_runs, 'run')} gave the same answer, but it was scored differently"
        if task.first_divergence is not None:
            place = task.first_divergence
            where = f" after {count(place.position, 'character')}" if place.position is not None else ""
            words += f"; {place.channel} differs first{where}: {place.first!r} and {place.second!r}"
    elif DeterminismNote.FAILED_RUNS in task.notes:
        status, code = GateStatus.FAIL, "FAILED_RUNS"
        words = f"{task.runs - task.answered_runs} of {count(task.runs, 'run')} gave no answer, and that is no determinism"
    elif task.deterministic is None:
        status, code = GateStatus.SKIP, "NOT_DETERMINABLE"
        words = "a single run cannot show whether the answer repeats: use --runs 2 or more"
    return GateCheck(name="determinism", subject=task.test_id, status=status, code=code, evidence=words)


def _check_canary(canary: CanaryBlock | None) -> GateCheck:
    if canary is None:
        why = f"the canary judges one task with at least {MIN_LATENCY_SAMPLES + 1} runs: use --task-limit 1 --runs 10"
        return GateCheck(name="canary", subject="canary", status=GateStatus.SKIP, code="NOT_DETERMINABLE", evidence=why)
    variation = "unknown" if canary.latency_variation is None else percent(canary.latency_variation)
    words = f"latency varies by {variation}, limit {percent(canary.latency_variance_threshold)}"
    if not canary.passed:
        words = f"{words}; {', '.join(canary.failed_reasons)}: {' '.join(canary.remedies)}"
    return GateCheck(
        name="canary",
        subject=str(canary.task_id),
        status=GateStatus.PASS if canary.passed else GateStatus.FAIL,
        code="" if canary.passed else "CANARY_FAILED",
        measured=canary.latency_variation,
        limit=canary.latency_variance_threshold,
        evidence=words,
    )
