"""What a sweep tells whoever watches. Called only between trials, never while one is being measured."""

from __future__ import annotations

from typing import Protocol

from fewbits.records.summary import CanaryBlock, Decision
from fewbits.records.trial import Trial


class SweepObserver(Protocol):
    """Hears of progress. Must return quickly; may draw or log."""

    def notice(self, message: str) -> None:
        """One line that a person should see (a build, a restart, a polluted trial)."""

    def canary_started(self, runs: int) -> None:
        """The canary gate begins."""

    def canary_ended(self, verdict: CanaryBlock) -> None:
        """The canary gate has its verdict."""

    def matrix_started(self, total: int, done: int) -> None:
        """The matrix begins; `done` trials were already in the journal."""

    def trial_ended(self, trial: Trial) -> None:
        """A trial was written to its journal."""

    def variant_decided(self, model_id: str, decision: Decision, trials_left: int) -> None:
        """A variant has its verdict and gets no more items; at most `trials_left` trials of this model remain."""

    def matrix_ended(self) -> None:
        """Every trial that is needed is in the journal."""


class SilentObserver:
    """Hears and says nothing."""

    def notice(self, message: str) -> None:
        """Ignore."""

    def canary_started(self, runs: int) -> None:
        """Ignore."""

    def canary_ended(self, verdict: CanaryBlock) -> None:
        """Ignore."""

    def matrix_started(self, total: int, done: int) -> None:
        """Ignore."""

    def trial_ended(self, trial: Trial) -> None:
        """Ignore."""

    def variant_decided(self, model_id: str, decision: Decision, trials_left: int) -> None:
        """Ignore."""

    def matrix_ended(self) -> None:
        """Ignore."""
