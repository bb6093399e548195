"""Asking for a finished run again: nothing is measured, nothing is loaded; the whole process, as a user waits for it."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.result import MODEL, Result, judged, timed_command
from fewbits.store.run_directory import RunDirectory

RUNS = 5
MAX_SECONDS = 1.0
_QUANTS = "Q8_0,Q4_K_M"
_TASKS = "logic-001,extraction-001,structured-001"


def measure() -> list[Result]:
    """Run two variants on three tasks through the command line, then time the same command `RUNS` times."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        command = [sys.executable, "-m", "fewbits", "sweep", "--model-id", MODEL, "--quant-tags", _QUANTS, "--task-ids", _TASKS]
        command += ["--max-tokens", "16", "--canary-runs", "0", "--out-dir", folder]
        first, _ = timed_command(command)
        journal = RunDirectory(Path(folder)).trials_path
        before = journal.read_bytes()
        seconds = [timed_command(command)[0] for _ in range(RUNS)]
        if journal.read_bytes() != before:
            msg = "the finished run was run again: its journal changed"
            raise RuntimeError(msg)
    nothing = statistics.median(timed_command([sys.executable, "-c", "pass"])[0] for _ in range(RUNS))
    median = statistics.median(seconds)
    listed = ", ".join(f"{value:.2f}" for value in seconds)
    rows = before.count(b"\n")
    note = (
        f"whole process, {rows} trials in the journal: {listed} s; {median / nothing:.0f}x python -c pass ({nothing:.2f} s), "
        f"{100 * median / first:.0f} % of the first run ({first:.1f} s)"
    )
    return [judged("the same sweep again, when it is finished", median, MAX_SECONDS, "s", note)]
