"""Several attempts at one cell: which one counts, and whether another one can help."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from fewbits.analysis.run_quality import FOREIGN_REASONS
from fewbits.records.base import TrialStatus
from fewbits.records.plan import Plan
from fewbits.records.trial import Trial, TrialView


def is_disturbed(trial: Trial | TrialView) -> bool:
    """Tell whether others disturbed a trial, so that running it again can help (missing telemetry is no such thing)."""
    return not FOREIGN_REASONS.isdisjoint(trial.run_quality_reasons)


def counted(attempts: Sequence[TrialView]) -> TrialView:
    """Return the attempt that counts: an undisturbed one before a disturbed one, then the latest. `attempts` is not empty.

    The choice looks at the machine's state alone, never at the answer, so it favours no variant. It does not depend on the order.
    """
    return max(attempts, key=_precedence)


def _precedence(trial: TrialView) -> tuple[bool, int, str, bytes]:
    """The last two parts only make the choice independent of row order."""
    return (not is_disturbed(trial), trial.attempt, trial.started_at, msgspec.json.encode(trial))


def outcome_score(trial: TrialView) -> float | None:
    """Return the adherence that a trial counts with: 0 when it failed, `None` where its task has no checks."""
    return trial.adherence_score if trial.status is TrialStatus.OK else 0.0


def rerun_budget(plan: Plan) -> int:
    """Return how many further attempts the plan allows in all."""
    return math.ceil(plan.spec.quality.rerun_budget_ratio * plan.trials_total)
