"""The determinism harness: a sweep of one variant whose only question is whether the answers repeat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fewbits.analysis.determinism_report import check_determinism, determinism_report, differing_trials
from fewbits.analysis.gate_report import build_report
from fewbits.api.sweeps import PreparedSweep, prepare_sweep, read_texts, run_sweep
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.records.determinism import DeterminismReport
from fewbits.records.gates import GateReport
from fewbits.records.trial import TrialView
from fewbits.store.journal import read_journal
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.matrix import matrix_is_done
from fewbits.sweep.progress import SweepObserver

ALONE: dict[str, object] = {
    "canary_runs": "0",
    "evaluation_text": "none",
    "determinism_tasks": "0",
    "rerun_budget_ratio": "0",
    "selection_policy": "threshold-v1",
    "adherence_floor": "0",
    "baselines": False,
}
"""Settings of a sweep that runs one variant for its own sake: nothing is compared, nothing is run again."""


def prepare_harness(flags: Mapping[str, object], output: Path) -> PreparedSweep:
    """Plan the repeats. `flags` are those of a sweep; the run folder lies beside `output`. Raises `SpecError`."""
    if not output.name or output.is_dir():
        raise SpecError.single("--output", f"{output} is a folder", "name the file that the report is written to")
    run_folder = output.with_name(f"{output.stem}_run")
    prepared = prepare_sweep({**ALONE, "out_dir": str(run_folder), **flags}, None)
    if len(prepared.plan.spec.models) != 1 or len(prepared.plan.spec.quants) != 1:
        raise SpecError.single("--quant-tag", "the harness repeats one model at one quantization", "give one of each")
    return prepared


def run_harness(prepared: PreparedSweep, output: Path, observer: SweepObserver, *, fresh: bool = False) -> DeterminismReport:
    """Run what is missing and write the report. Only an unfinished run of this very plan is gone on with.

    A finished one is set aside, since asking again means measuring again, and so is one of another plan: nothing is lost, and
    the harness has no second folder. Raises what `run_sweep` raises.
    """
    directory = prepared.directory
    run_sweep(prepared, observer, fresh=fresh or not _goes_on(prepared))
    report = rebuild_report(directory)
    atomic_write(output, encode_pretty(report))
    return report


def _goes_on(prepared: PreparedSweep) -> bool:
    present = prepared.directory.read_plan()
    if present is None or present.digest != prepared.plan.digest:
        return False
    return not matrix_is_done(prepared.plan, read_journal(prepared.directory.trials_path, TrialView).rows)


def rebuild_report(directory: RunDirectory) -> DeterminismReport:
    """Return the report of a harness run, from its folder alone. Raises `StoreError`."""
    plan = directory.read_plan()
    if plan is None:
        msg = f"{directory.root} is not a run folder: it has no plan.json."
        raise StoreError(msg)
    journal = read_journal(directory.trials_path, TrialView)
    texts = read_texts(directory, journal, differing_trials(journal.rows))
    return determinism_report(plan, journal.rows, texts)


def gate_determinism(report: DeterminismReport, *, with_canary: bool, allow_skip: bool) -> GateReport:
    """Say PASS, FAIL or SKIP of a report."""
    checks = check_determinism(report, with_canary=with_canary)
    thresholds: dict[str, float | str | None] = {"runs_per_task": float(report.runs_per_task)}
    return build_report("determinism", checks, sources=[], thresholds=thresholds, allow_skip=allow_skip)
