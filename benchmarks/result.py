"""What a benchmark says, and the few statistics that all of them use."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from fewbits.core.process import run_command, tail_of
from fewbits.records.base import Record

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
SCHEME = "Q8_0"
_COMMAND_TIMEOUT_SECONDS = 600.0


class Outcome(StrEnum):
    """How a measurement compares with its claim. `SKIP`: a prerequisite is missing; `ERROR`: the benchmark itself failed."""

    PASS = "PASS"
    MISS = "MISS"
    SKIP = "SKIP"
    ERROR = "ERROR"


class Result(Record, frozen=True, kw_only=True):
    """One row of the table. `measured` and `limit` are in `unit`; both are `None` for a skipped benchmark."""

    name: str
    measured: float | None
    limit: float | None
    unit: str
    outcome: Outcome
    at_least: bool = False
    """The limit is a floor, not a ceiling."""
    note: str = ""


def judged(name: str, measured: float, limit: float, unit: str, note: str, *, at_least: bool = False) -> Result:
    """Compare a measurement with its limit."""
    kept = measured >= limit if at_least else measured <= limit
    return Result(
        name=name,
        measured=measured,
        limit=limit,
        unit=unit,
        outcome=Outcome.PASS if kept else Outcome.MISS,
        at_least=at_least,
        note=note,
    )


def skipped(name: str, why: str) -> Result:
    """Say what is missing and what to do about it."""
    return Result(name=name, measured=None, limit=None, unit="", outcome=Outcome.SKIP, note=why)


def notice(line: str) -> None:
    """Tell a waiting person what goes on; stdout is kept for results."""
    print(line, file=sys.stderr, flush=True)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile (inclusive method): how far apart repeats lie on this machine. Needs two values."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def timed_command(argv: Sequence[str | Path]) -> tuple[float, str]:
    """Wall seconds of a whole process from the checkout's root, and its stdout. Raises `RuntimeError` when it fails."""
    started = time.perf_counter()
    result = run_command(argv, timeout_seconds=_COMMAND_TIMEOUT_SECONDS, cwd=REPOSITORY_ROOT)
    seconds = time.perf_counter() - started
    if not result.ok:
        command = subprocess.list2cmdline(result.argv)
        msg = f"`{command[:200]}` ended with {result.returncode}: {tail_of(result.tail, 5)}"
        raise RuntimeError(msg)
    return seconds, result.stdout
