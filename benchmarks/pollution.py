"""Pollution with teeth: a real sweep beside a CPU hog that comes and goes. Are slowed trials flagged, and only those?

The same sweep runs quiet, loaded, and quiet again. A trial's slowdown is its wall time over the mean of its cell's quiet times;
which trials the hog touched is known from its own log. Prints what other limits would have caught: the defaults come from here.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result import MODEL, REPOSITORY_ROOT, Result, judged, notice
from fewbits import api
from fewbits.analysis.run_quality import FOREIGN_REASONS
from fewbits.records.base import OpenRecord, PollutionReason, RunQuality
from fewbits.records.summary import QuantRow
from fewbits.records.trial import EnvironmentDelta, EnvironmentSample
from fewbits.store.journal import read_journal
from fewbits.sweep.progress import SilentObserver

QUANTS = ("F16", "Q4_K_M")
BANK, TASKS = "benchmarks/task_bank/short/tasks.json", 100
SLOWED, DRIFT = 1.10, 0.05
LIMITS = (0.02, 0.03, 0.04, 0.05, 0.075, 0.10, 0.15)
Cell = tuple[str, str]


class _Sampled(OpenRecord, frozen=True, kw_only=True):
    before: EnvironmentSample
    during: EnvironmentDelta
    after: EnvironmentSample


class _Telemetry(OpenRecord, frozen=True, kw_only=True):
    total_latency: float | None


class _Row(OpenRecord, frozen=True, kw_only=True):
    """The part of a journal row that this benchmark reads."""

    phase: str
    attempt: int
    quant_tag: str
    task_id: str
    telemetry: _Telemetry
    environment: _Sampled
    run_quality_reasons: tuple[PollutionReason, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """First attempts by cell, and the row of the smaller variant in the summary."""

    rows: dict[Cell, _Row]
    variant: QuantRow


@dataclass(frozen=True, slots=True)
class Trial:
    """One loaded trial against its quiet self; `touched` is the share of its time that the hog was busy."""

    slowdown: float
    touched: float
    flagged: bool
    foreign: float
    pressure: float


def measure() -> list[Result]:
    """Run the sweep three times, about a minute each. Raises `PrerequisiteError` without an engine."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        root = Path(folder)
        first = _run(root / "quiet")
        with _hog() as spells:
            loaded = _run(root / "loaded")
        again = _run(root / "quiet-again")
    return _results(first, loaded, again, spells)


def _run(folder: Path) -> Run:
    notice(f"  {folder.name} ...")
    flags: dict[str, object] = {
        "models": [MODEL],
        "quants": list(QUANTS),
        "task_bank": BANK,
        "task_limit": str(TASKS),
        "canary_runs": "0",
        "evaluation_text": "none",
        "determinism_tasks": "0",
        "out_dir": str(folder),
    }
    prepared = api.prepare_sweep(flags, None)
    summary = api.run_sweep(prepared, SilentObserver())
    rows = read_journal(prepared.directory.trials_path, _Row).rows
    first = {(row.quant_tag, row.task_id): row for row in rows if row.phase == "matrix" and row.attempt == 1}
    return Run(first, next(row for row in summary.sessions[0].per_quant if row.quant_tag == QUANTS[1]))


@contextmanager
def _hog() -> Iterator[list[tuple[float, float]]]:
    """Run the hog; the list that is yielded holds its busy spells once it has ended."""
    spells: list[tuple[float, float]] = []
    words = [sys.executable, "-m", "benchmarks.hog", "7"]
    with subprocess.Popen(
        words, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            yield spells
        finally:
            said, _ = child.communicate()
            spells += [(float(start), float(end)) for start, end in (line.split() for line in said.splitlines())]


def _results(first: Run, loaded: Run, again: Run, spells: Sequence[tuple[float, float]]) -> list[Result]:
    quiet = [first, again]
    trials = [trial for cell in loaded.rows if (trial := _trial(cell, loaded, quiet, spells)) is not None]
    slowed = [trial for trial in trials if trial.slowdown > SLOWED and trial.touched > 0]
    calm = [trial for trial in trials if trial.touched == 0]
    calm_flags = [trial.flagged for trial in calm] + [was_flagged(row) for run in quiet for row in run.rows.values()]
    untouched = sum(trial.slowdown > SLOWED for trial in calm)
    busy = sum(end - start for start, end in spells)
    note = (
        f"{len(trials)} trials, hog busy in {len(spells)} spells, {busy:.0f} s; median slowdown of touched trials "
        f"{_median([t.slowdown for t in trials if t.touched > 0]):.2f}; {untouched} of {len(calm)} untouched ones were "
        f"slower than {SLOWED:g} too; {_calibration(slowed, calm)}"
    )
    caught = 100 * sum(trial.flagged for trial in slowed) / len(slowed) if slowed else 0.0
    false = 100 * sum(calm_flags) / len(calm_flags) if calm_flags else 100.0
    return [
        judged(f"trials slowed by more than 10 % that are flagged ({len(slowed)})", caught, 95, "%", note, at_least=True),
        judged(
            f"undisturbed trials that are flagged ({len(calm_flags)})", false, 2, "%", "both quiet runs, and between the spells"
        ),
        _ratio_result(first, loaded, again),
    ]


def was_flagged(row: _Row) -> bool:
    """Whether the policy flagged a row for what others did."""
    return not FOREIGN_REASONS.isdisjoint(row.run_quality_reasons)


def _trial(cell: Cell, loaded: Run, quiet: Sequence[Run], spells: Sequence[tuple[float, float]]) -> Trial | None:
    row = loaded.rows[cell]
    times = [run.rows[cell].telemetry.total_latency for run in quiet if cell in run.rows]
    known = [seconds for seconds in times if seconds is not None]
    wall, delta = row.telemetry.total_latency, row.environment.during
    if not known or wall is None:
        return None
    start, end = row.environment.before.monotonic_seconds, row.environment.after.monotonic_seconds
    overlap = sum(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in spells)
    return Trial(
        slowdown=wall / statistics.mean(known),
        touched=overlap / (end - start),
        flagged=was_flagged(row),
        foreign=delta.foreign_cpu_ratio or 0.0,
        pressure=delta.cpu_pressure_ratio or 0.0,
    )


def _calibration(slowed: Sequence[Trial], calm: Sequence[Trial]) -> str:
    """What each limit alone would have caught of the slowed and flagged of the calm."""
    parts = []
    for name in ("foreign", "pressure"):
        rates = [f"{limit:g}: {_share(slowed, name, limit):.0%}/{_share(calm, name, limit):.0%}" for limit in LIMITS]
        parts.append(f"{name} above limit, slowed/calm {', '.join(rates)}")
    return "; ".join(parts)


def _share(trials: Sequence[Trial], name: str, limit: float) -> float:
    return sum(getattr(trial, name) > limit for trial in trials) / len(trials) if trials else 0.0


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def _ratio_result(first: Run, loaded: Run, again: Run) -> Result:
    """The latency ratio between the two variants under load, against its quiet value; a POLLUTED row is as good."""
    ratios = [run.variant.latency_ratio.value if run.variant.latency_ratio else float("nan") for run in (first, loaded, again)]
    quiet = (ratios[0] + ratios[2]) / 2
    drift = abs(ratios[1] / quiet - 1)
    polluted = loaded.variant.run_quality_status is RunQuality.POLLUTED
    note = (
        f"{QUANTS[1]} / {QUANTS[0]}: quiet {ratios[0]:.3f} and {ratios[2]:.3f}, loaded {ratios[1]:.3f}; the loaded row is "
        f"{loaded.variant.run_quality_status.value} with {loaded.variant.polluted_run_rate:.0%} polluted after re-runs"
    )
    return judged(
        "latency ratio under load, off its quiet value (or POLLUTED)", 0.0 if polluted else 100 * drift, 100 * DRIFT, "%", note
    )
