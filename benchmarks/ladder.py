"""A real ladder, decided: the demo's own preset, whose truth is known at both ends (Q8_0 is no worse, Q2_K is not the same)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.result import REPOSITORY_ROOT, Outcome, Result, judged
from fewbits import api
from fewbits.records.summary import QuantRow, Session, VerdictCode
from fewbits.sweep.progress import SilentObserver

PRESET = REPOSITORY_ROOT / "benchmarks" / "configs" / "quant_sweep_demo.json"


def measure() -> list[Result]:
    """Run the preset without its canary (a busy machine must not end a benchmark). Raises `PrerequisiteError`."""
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        prepared = api.prepare_sweep({"out_dir": folder, "canary_runs": "0"}, Path(PRESET))
        (session,) = api.run_sweep(prepared, SilentObserver()).sessions
    rows = {row.quant_tag: row for row in session.per_quant}
    note = "; ".join(_words(row) for row in session.per_quant if row.verdict is not None)
    return [
        _verdict("Q8_0 of SmolLM2 is not called WORSE", rows["Q8_0"], VerdictCode.WORSE, note),
        _verdict("Q2_K of SmolLM2 is not called EQUIVALENT", rows["Q2_K"], VerdictCode.EQUIVALENT, note),
        _saved(session),
    ]


def _verdict(name: str, row: QuantRow, forbidden: VerdictCode, note: str) -> Result:
    wrong = row.verdict is None or row.verdict.verdict is forbidden
    outcome = Outcome.MISS if wrong else Outcome.PASS
    return Result(name=name, measured=None, limit=None, unit="", outcome=outcome, note=note)


def _words(row: QuantRow) -> str:
    verdict = row.verdict
    if verdict is None or verdict.difference is None:
        return f"{row.quant_tag} without a verdict"
    low, high = verdict.difference.low or 0.0, verdict.difference.high or 0.0
    kl = row.divergence.mean_nats.value if row.divergence is not None and row.divergence.mean_nats is not None else float("nan")
    more = f", about {verdict.further_items} more would decide" if verdict.further_items is not None else ""
    span = f"{100 * verdict.difference.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return f"{row.quant_tag} {verdict.verdict}: {span}, {verdict.items_used} items, {kl:.3g} nats{more}"


def _saved(session: Session) -> Result:
    log = session.decision_log
    if log is None:
        msg = "the demo's preset decides item by item"
        raise RuntimeError(msg)
    share = 100 * log.trials_run / log.trials_full_matrix
    note = f"undecided within {log.items_available} items: {', '.join(log.undecided) or 'none'}"
    return judged("trials that deciding the real ladder needed, of the full matrix", share, 100, "%", note)
