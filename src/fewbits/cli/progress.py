"""Progress of a sweep on stderr: a bar with ETA on a terminal, plain lines elsewhere. Drawn only between trials."""

from __future__ import annotations

import sys
import time
from typing import Any

from fewbits.analysis.wording import count
from fewbits.core.units import format_seconds
from fewbits.records.base import RunQuality, TrialStatus
from fewbits.records.summary import CanaryBlock, Decision
from fewbits.records.trial import Trial

_PLAIN_STEPS = 10
"""Off a terminal, about this many progress lines a phase."""


def create_observer() -> PlainObserver | BarObserver:
    """Choose by what stderr is."""
    return BarObserver() if sys.stderr.isatty() else PlainObserver()


class PlainObserver:
    """Prints lines: one per event, and about ten per matrix."""

    def __init__(self) -> None:
        self._total = self._done = self._failed = self._polluted = 0
        self._skipped = 0
        self._started = 0.0
        self._in_matrix = False

    def notice(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)

    def canary_started(self, runs: int) -> None:
        """Say that the gate begins."""
        self.notice(f"canary: {runs} repeats of one task under fixed controls")

    def canary_ended(self, verdict: CanaryBlock) -> None:
        """Say how the gate ended."""
        self.notice(describe_canary(verdict))

    def matrix_started(self, total: int, done: int) -> None:
        """Start the clock of the matrix."""
        self._total, self._done, self._skipped = total, done, done
        self._started, self._in_matrix = time.monotonic(), True
        rest = f", {done} already in the journal" if done else ""
        self.notice(f"matrix: {total} trials{rest}")

    def trial_ended(self, trial: Trial) -> None:
        """Count, and print a line now and then."""
        if not self._in_matrix:
            return
        self._count(trial)
        step = max(1, self._total // _PLAIN_STEPS)
        if self._done % step == 0 or self._done == self._total:
            self.notice(f"  {self._done}/{self._total} trials{self._troubles()}, {format_seconds(self._remaining())} left")

    def variant_decided(self, model_id: str, decision: Decision, trials_left: int) -> None:
        """Say which variant is decided, and count on fewer trials."""
        self.notice(f"{decision.quant_tag} of {model_id} is {decision.verdict.value} after {count(decision.after_items, 'item')}")
        self._total = min(self._total, self._done + trials_left)

    def matrix_ended(self) -> None:
        """Forget the matrix."""
        self._in_matrix = False

    def close(self) -> None:
        """Nothing to put back."""

    def _count(self, trial: Trial) -> None:
        self._done += trial.attempt == 1  # a re-run is no new cell
        self._failed += trial.status is not TrialStatus.OK
        self._polluted += trial.run_quality_status is RunQuality.POLLUTED

    def _troubles(self) -> str:
        parts = [f"{self._failed} failed"] if self._failed else []
        parts += [f"{self._polluted} polluted"] if self._polluted else []
        return f" ({', '.join(parts)})" if parts else ""

    def _remaining(self) -> float | None:
        measured = self._done - self._skipped
        if measured <= 0:
            return None
        return (time.monotonic() - self._started) / measured * (self._total - self._done)


class BarObserver(PlainObserver):
    """Draws one bar. Rich's own refresh thread stays off: it would wake up while the engine is being timed."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        self._progress: Any = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._bar: Any = None

    def notice(self, message: str) -> None:
        """Print above the bar."""
        self._console.print(message, markup=False, highlight=False)

    def matrix_started(self, total: int, done: int) -> None:
        """Open the bar."""
        super().matrix_started(total, done)
        self._progress.start()
        self._bar = self._progress.add_task("measuring", total=total, completed=done, left="")
        self._progress.refresh()

    def trial_ended(self, trial: Trial) -> None:
        """Move the bar."""
        if not self._in_matrix:
            self.notice(f"  canary {trial.repetition + 1}: {_internal(trial)}, {trial.run_quality_status.value.lower()}")
            return
        self._count(trial)
        left = f"{format_seconds(self._remaining())} left{self._troubles()}"
        self._progress.update(
            self._bar, completed=self._done, total=self._total, description=f"{trial.quant_tag} · {trial.task_id}"[:28], left=left
        )
        self._progress.refresh()

    def matrix_ended(self) -> None:
        """Close the bar."""
        super().matrix_ended()
        self._progress.stop()

    def close(self) -> None:
        """Leave the terminal as it was, also when the sweep was cut short."""
        self._progress.stop()


def _internal(trial: Trial) -> str:
    return f"{format_seconds(trial.telemetry.internal_model_seconds)} in the model"


def describe_canary(verdict: CanaryBlock) -> str:
    """One line about the gate's verdict."""
    variation = "unknown" if verdict.latency_variation is None else f"{verdict.latency_variation:.1%}"
    word = "passed" if verdict.passed else "FAILED"
    limit = f"{verdict.latency_variance_threshold:.0%}"
    return f"canary {word}: latency varies by {variation} (limit {limit}), {verdict.runs_made} repeats"
