"""The only loop: canary, divergence, then every planned trial that the journal does not hold yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fewbits.analysis.attempts import is_disturbed
from fewbits.analysis.canary import judge_canary
from fewbits.analysis.ranking import reference_tag
from fewbits.analysis.replay import HarmPs
from fewbits.core.errors import BackendError, CanaryBlockedError
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.machine import usable_cores
from fewbits.probes.memory import GpuMemory
from fewbits.records.base import TrialStatus
from fewbits.records.plan import Plan, PlannedTrial
from fewbits.records.summary import CanaryBlock
from fewbits.records.task import Task
from fewbits.records.trial import Trial, TrialView
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.base import Runtime
from fewbits.store.journal import JournalWriter, read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.guard import Guard
from fewbits.sweep.matrix import Matrix
from fewbits.sweep.pool import ModelPool, VariantKey
from fewbits.sweep.progress import SweepObserver
from fewbits.sweep.trial import Cell, Instruments, ask, record, view_of

MAX_CONSECUTIVE_CRASHES = 5
"""A variant whose engine dies this often in a row ends the sweep: the journal keeps what was measured."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything that a sweep needs, resolved."""

    plan: Plan
    tasks: Mapping[str, Task]
    variants: Mapping[VariantKey, Variant]
    runtime: Runtime
    directory: RunDirectory
    observer: SweepObserver
    measure_divergence: Callable[[], HarmPs]
    """Measures what is missing, after the canary and before the matrix; returns the harm test's p-value per variant."""

    @property
    def artifacts(self) -> dict[VariantKey, Artifact]:
        """The manifests of the variants."""
        return {key: variant.artifact for key, variant in self.variants.items()}


@dataclass(frozen=True, slots=True)
class Lab:
    """A sweep with what runs and watches it."""

    sweep: Sweep
    pool: ModelPool
    instruments: Instruments
    guard: Guard


def run(sweep: Sweep) -> None:
    """Run what is missing. The caller holds the directory's lock.

    Raises `CanaryBlockedError` when the gate says no, `IdentityError` when a runtime serves something else, `BackendError`
    when a variant cannot be kept running, `GuardStopError` when the live guard ends it. Whatever ends it, the journal holds
    every finished trial.
    """
    probe = EnvironmentProbe()
    instruments = Instruments(environment=probe, gpu=GpuMemory(), cores=len(usable_cores()))
    guard = Guard(sweep.plan, probe.sample, sweep.observer.notice)
    pool = ModelPool(
        sweep.runtime,
        variants=sweep.variants,
        controls=sweep.plan.controls,
        load_timeout_seconds=sweep.plan.spec.load_timeout_seconds,
        request_timeout_seconds=sweep.plan.spec.trial_timeout_seconds,
        available_bytes=lambda: probe.sample().memory_available_bytes,
        on_change=probe.track,
        guard=guard,
    )
    lab = Lab(sweep, pool, instruments, guard)
    try:
        _pass_canary(lab)
        harm_ps = sweep.measure_divergence()
        _run_matrix(lab, harm_ps)
    finally:
        pool.close()
        probe.close()


def _pass_canary(lab: Lab) -> None:
    """Run the canary unless it already passed under this plan; raise when it fails."""
    sweep = lab.sweep
    policy = sweep.plan.spec.canary
    if policy.runs == 0:
        return
    verdict = read_canary(sweep.plan, sweep.directory)
    if verdict.passed:
        return
    sweep.directory.canary_path.unlink(missing_ok=True)
    sweep.observer.canary_started(policy.runs)
    key, task = _canary_cell(sweep)
    lab.guard.before_block(0)
    writer = JournalWriter(sweep.directory.canary_path)
    try:
        undisturbed = disturbed = 0
        while undisturbed < policy.runs and disturbed <= policy.max_polluted_retries:
            attempts = undisturbed + disturbed
            planned = PlannedTrial(
                index=attempts, block=0, model_id=key[0], quant_tag=key[1], task_id=task.id, repetition=attempts
            )
            trial = _one_trial(lab, planned, task, phase="canary")
            writer.append(trial)
            sweep.observer.trial_ended(trial)
            if is_disturbed(trial):
                disturbed += 1
            else:
                undisturbed += 1
    finally:
        writer.close()
    verdict = read_canary(sweep.plan, sweep.directory)
    sweep.observer.canary_ended(verdict)
    if not verdict.passed:
        reasons = ", ".join(verdict.failed_reasons)
        advice = "\n".join(f"  - {line}" for line in verdict.remedies)
        msg = f"the canary gate failed ({reasons}): this machine, in its present state, does not repeat itself.\n{advice}"
        raise CanaryBlockedError(msg)


def read_canary(plan: Plan, directory: RunDirectory) -> CanaryBlock:
    """Judge the canary journal again, from the file alone. A gate that has not run yet has not passed."""
    trials = [trial for trial in read_journal(directory.canary_path, TrialView).rows if trial.plan_digest == plan.digest]
    foreign = [trial.environment.during.foreign_cpu_ratio for trial in trials if trial.environment is not None]
    known = [ratio for ratio in foreign if ratio is not None]
    first = trials[0] if trials else None
    return judge_canary(
        trials,
        plan.spec.canary,
        model_id=first.model_id if first else None,
        quant_tag=first.quant_tag if first else None,
        task_id=first.task_id if first else None,
        worst_foreign_cpu_ratio=max(known, default=None),
    )


def _canary_cell(sweep: Sweep) -> tuple[VariantKey, Task]:
    """The cell to repeat: the policy's, else the reference variant and the task that may generate longest.

    A long generation is asked for because a short one measures the clock's noise, not the engine's.
    """
    plan = sweep.plan
    model_id = plan.spec.models[0]
    tag = plan.spec.canary.quant_tag or reference_tag(plan, model_id, sweep.artifacts)
    if (model_id, tag) not in sweep.variants:
        model_id, tag = next(iter(sweep.variants))
    task_id = plan.spec.canary.task_id
    if task_id is None:
        limit = plan.controls.max_tokens
        longest = max(plan.tasks, key=lambda planned: min(sweep.tasks[planned.task_id].max_tokens or limit, limit))
        task_id = longest.task_id
    return (model_id, tag), sweep.tasks[task_id]


def _run_matrix(lab: Lab, harm_ps: HarmPs) -> None:
    sweep = lab.sweep
    journal = read_journal(sweep.directory.trials_path, TrialView)
    matrix = Matrix(sweep.plan, sweep.artifacts, harm_ps, journal.rows, sweep.observer)
    sweep.observer.matrix_started(matrix.total, matrix.done)
    writer = JournalWriter(sweep.directory.trials_path)
    crashes: dict[VariantKey, int] = {}

    def run_trial(cell: PlannedTrial, phase: str, attempt: int) -> TrialView:
        trial = _one_trial(lab, cell, sweep.tasks[cell.task_id], phase=phase, attempt=attempt)
        writer.append(trial)
        sweep.observer.trial_ended(trial)
        _count_crashes(crashes, (cell.model_id, cell.quant_tag), trial)
        lab.guard.after_trial(trial)
        return view_of(trial)

    try:
        matrix.run(run_trial, lab.guard.before_block)
    finally:
        writer.close()
    sweep.observer.matrix_ended()


def _count_crashes(crashes: dict[VariantKey, int], key: VariantKey, trial: Trial) -> None:
    """Stop a sweep whose engine dies again and again."""
    crashes[key] = crashes.get(key, 0) + 1 if trial.status is TrialStatus.CRASHED else 0
    if crashes[key] >= MAX_CONSECUTIVE_CRASHES:
        msg = (
            f"{key[1]} of {key[0]} crashed {crashes[key]} times in a row; every crash is in the journal. "
            "Run the same command again to go on after mending the engine. Last crash: " + trial.failure
        )
        raise BackendError(trial.engine, msg)


def _one_trial(lab: Lab, planned: PlannedTrial, task: Task, *, phase: str, attempt: int = 1) -> Trial:
    sweep, pool, instruments = lab.sweep, lab.pool, lab.instruments
    key = (planned.model_id, planned.quant_tag)
    model = pool.get(key)
    outcome = ask(model, task, sweep.plan, instruments, repetition=planned.repetition)
    artifact = sweep.variants[key].artifact
    cell = Cell(planned=planned, task=task, artifact=artifact, phase=phase, attempt=attempt)
    trial = record(cell, sweep.plan, model, outcome, instruments.cores)
    if trial.status in {TrialStatus.TIMEOUT, TrialStatus.CRASHED, TrialStatus.PROTOCOL_ERROR}:
        pool.discard(key)  # it may be dead, or still computing the abandoned request
        sweep.observer.notice(f"{planned.quant_tag} · {task.id}: {trial.status.value}; the engine was restarted")
    return trial
