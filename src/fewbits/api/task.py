"""One task, run once: a sweep of a single trial, its comparison with a baseline, and saving it as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewbits.analysis.baselines import BaselineQuery, compare_measured
from fewbits.analysis.task_run import gold_of, outcome_of, task_flaws, task_record, vibe_delta
from fewbits.api.baseline_matches import resolve_baseline
from fewbits.api.baselines import utc_now
from fewbits.api.determinism import ALONE
from fewbits.api.sweeps import PreparedSweep, prepare_sweep, run_sweep
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write, safe_name
from fewbits.records.baseline import BaselineMatch
from fewbits.records.task_run import SavedBaseline, TaskRun
from fewbits.records.trial import Trial
from fewbits.store.baselines import BaselineStore, check_test_id
from fewbits.store.journal import read_journal
from fewbits.sweep.progress import SweepObserver


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What happens around the run. `test_id` names the baseline's history; `None`: the task's id."""

    storage_root: Path
    test_id: str | None = None
    baseline_ref: str | None = None
    save_baseline: bool = False
    force: bool = False


def prepare_task(flags: Mapping[str, object], runs_root: Path) -> PreparedSweep:
    """Plan a single trial in a new folder below `runs_root`. `flags` are those of a sweep. Raises `SpecError`."""
    stamp = utc_now().strftime("%Y%m%dT%H%M%S-%f")
    prepared = prepare_sweep({**ALONE, "runs_per_quant": "1", "out_dir": str(runs_root / stamp), **flags}, None)
    spec, tasks = prepared.plan.spec, prepared.plan.tasks
    if len(tasks) != 1:
        shown = ", ".join(task.task_id for task in tasks[:5]) + (", ..." if len(tasks) > 5 else "")
        raise SpecError.single("--task", f"{spec.task_bank} holds {len(tasks)} tasks", f"choose one with --task-id: {shown}")
    if len(spec.models) != 1 or len(spec.quants) != 1:
        raise SpecError.single("--quant-tag", "one run is of one model at one quantization", "give one of each")
    return prepared


def run_task(prepared: PreparedSweep, request: TaskRequest, observer: SweepObserver) -> TaskRun:
    """Run it, compare it with its baseline as it was before, save it where asked, and write `task_run.json`.

    Raises what `run_sweep` raises, `SpecError` for a test id that cannot name a file, `StoreError` for a damaged baseline file
    that should be appended to (the run itself is kept).
    """
    plan = prepared.plan
    task = plan.tasks[0]
    query = BaselineQuery(
        test_id=check_test_id(request.test_id or task.task_id),
        hardware_fingerprint=plan.hardware_fingerprint,
        task_revision=task.digest,
        ref=request.baseline_ref,
    )
    match = resolve_baseline(request.storage_root, query)
    run_sweep(prepared, observer)
    trials = [trial for trial in read_journal(prepared.directory.trials_path, Trial).rows if trial.phase == "matrix"]
    if not trials:
        msg = f"{prepared.directory.trials_path} holds no trial."
        raise StoreError(msg)
    trial = trials[-1]
    saved = _save(request, query, trial, plan.hardware_fingerprint) if request.save_baseline else None
    result = _result(prepared, query, trial, match, saved)
    atomic_write(prepared.directory.root / "task_run.json", encode_pretty(result))
    return result


def _save(request: TaskRequest, query: BaselineQuery, trial: Trial, fingerprint: str) -> SavedBaseline:
    flaws = task_flaws(trial)
    root = str(request.storage_root)
    if flaws and not request.force:
        return SavedBaseline(saved=False, storage_root=root, test_run_id=None, refused_because=flaws)
    created_at = utc_now().isoformat(timespec="milliseconds")
    record = task_record(trial, fingerprint=fingerprint, created_at=created_at, flaws=flaws)
    BaselineStore(request.storage_root).append(query.test_id, record)
    ref = record.baseline_metadata.test_run_id
    return SavedBaseline(saved=True, storage_root=root, test_run_id=ref, forced=bool(flaws), refused_because=flaws)


def _result(
    prepared: PreparedSweep, query: BaselineQuery, trial: Trial, match: BaselineMatch, saved: SavedBaseline | None
) -> TaskRun:
    spec, gold = prepared.plan.spec, match.record.gold_telemetry if match.record is not None else None
    delta, why = vibe_delta(trial, match.status, gold)
    engines = [(trial.engine, trial.engine_version)]
    return TaskRun(
        test_id=query.test_id,
        task_revision=query.task_revision,
        model_id=trial.model_id,
        quant_tag=trial.quant_tag,
        variant_sha256=trial.variant_sha256,
        engine=trial.engine,
        engine_version=trial.engine_version,
        hardware_fingerprint=query.hardware_fingerprint,
        execution_lane=spec.execution_lane.value,
        vram_profile=spec.vram_profile.value,
        started_at=trial.started_at,
        outcome=outcome_of(trial),
        status=trial.status,
        failure=trial.failure,
        adherence_score=trial.adherence_score,
        checks=trial.checks,
        output_text=trial.output_text,
        telemetry=trial.telemetry,
        run_quality_status=trial.run_quality_status,
        run_quality_reasons=trial.run_quality_reasons,
        experimental_controls=trial.controls_requested,
        controls_effective=trial.controls_effective,
        baseline=compare_measured(match, gold_of(trial), variant_hash=trial.variant_sha256 or "", engines=engines),
        vibe_delta=delta,
        vibe_delta_status=why,
        saved_baseline=saved,
    )


def default_runs_root(task_name: str) -> Path:
    """Return where single runs of a task go."""
    return Path("runs") / "tasks" / safe_name(task_name)
