"""The roadmap's service levels (phase 6): met on a quiet machine, honestly missed on a loaded one, as the KPI gate judges."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.result import MODEL, Result, judged, notice
from fewbits import api
from fewbits.analysis.kpis import KpiLimits
from fewbits.api.gates import gate_kpis
from fewbits.probes.machine import usable_cores
from fewbits.records.gates import GateReport, GateStatus
from fewbits.sweep.progress import SilentObserver

QUANTS = ("F16", "Q8_0", "Q4_K_M")
BANK = "benchmarks/task_bank/v2_realworld/tasks.json"
_BUSY = "while True: pass"


def measure() -> list[Result]:
    """Sweep fixed-seed logic tasks quiet, then beside a busy loop per core. Raises `PrerequisiteError` without an engine."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        quiet = _gate(Path(folder) / "quiet")
        with _load():
            loaded = _gate(Path(folder) / "loaded")
    return [
        judged("KPI checks that a quiet machine fails", _failures(quiet), 0, "", _words(quiet)),
        judged("KPI checks that a loaded machine fails", _failures(loaded), 1, "", _words(loaded), at_least=True),
    ]


def _gate(folder: Path) -> GateReport:
    notice(f"  {folder.name} ...")
    flags: dict[str, object] = {
        "models": [MODEL],
        "quants": list(QUANTS),
        "task_bank": BANK,
        "buckets": "logic",
        "tiers": "1",
        "runs_per_quant": "2",
        "selection_policy": "threshold-v1",
        "canary_runs": "0",
        "evaluation_text": "none",
        "baselines": False,
        "out_dir": str(folder),
    }
    prepared = api.prepare_sweep(flags, None)
    api.run_sweep(prepared, SilentObserver())
    return gate_kpis(prepared.directory.summary_path, KpiLimits(), allow_skip=False)


@contextmanager
def _load() -> Iterator[None]:
    """Keep every core busy."""
    children = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in usable_cores()]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def _failures(report: GateReport) -> float:
    return float(sum(check.status is not GateStatus.PASS for check in report.checks))


def _words(report: GateReport) -> str:
    return f"gate {report.status.value}: " + "; ".join(
        f"{check.name} {check.status.value} ({check.evidence})" for check in report.checks
    )
