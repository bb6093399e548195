"""Journal rows to columns: the attempt that counts per cell, grouped by variant, in an order that no file order can change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.analysis.attempts import counted
from fewbits.core.errors import StoreError
from fewbits.records.base import COMPLETE_TELEMETRY, RunQuality, TokenStatus, TrialStatus
from fewbits.records.plan import Plan
from fewbits.records.trial import TrialView

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.intp]
Cell = tuple[str, str, str, int]
MATRIX, DETERMINISM = "matrix", "determinism"
"""Phases of a journal row: the planned trials, and the repeats that only show whether a variant repeats itself."""


@dataclass(frozen=True)
class Group:
    """The counted trials of one variant, sorted by task and repetition, as columns (missing numbers are NaN)."""

    trials: tuple[TrialView, ...]

    def values(self, path: str) -> list[Any]:
        """Return one field of every trial, by dotted path (`telemetry.total_latency`)."""
        return list(map(attrgetter(path), self.trials))

    def column(self, path: str) -> Floats:
        """Return `float64[trials]` of one number, by dotted path; `None` becomes NaN."""
        return np.array(self.values(path), dtype=np.float64)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Task ids present, sorted."""
        return tuple(dict.fromkeys(self.values("task_id")))

    @cached_property
    def task_codes(self) -> Codes:
        """`int[trials]`: index into `tasks`."""
        index = {task: code for code, task in enumerate(self.tasks)}
        return np.array([index[task] for task in self.values("task_id")], dtype=np.intp)

    @cached_property
    def ok(self) -> Mask:
        """Trials that ended with an answer."""
        return np.array([status is TrialStatus.OK for status in self.values("status")], dtype=np.bool_)

    @cached_property
    def replied(self) -> Mask:
        """Trials whose runtime answered at all, if only with nothing."""
        return np.array([status in (TrialStatus.OK, TrialStatus.EMPTY) for status in self.values("status")], dtype=np.bool_)

    @cached_property
    def clean(self) -> Mask:
        """Trials that nothing foreign disturbed."""
        return np.array([quality is RunQuality.CLEAN for quality in self.values("run_quality_status")], dtype=np.bool_)

    @cached_property
    def token_ok(self) -> Mask:
        """Trials with token counts and timings."""
        return np.array([status is TokenStatus.OK for status in self.values("telemetry.token_metrics.status")], dtype=np.bool_)

    @cached_property
    def telemetry_complete(self) -> Mask:
        """Trials whose runtime told everything that their kind of work has to tell."""
        statuses = self.values("telemetry.token_metrics.status")
        return np.array([status in COMPLETE_TELEMETRY for status in statuses], dtype=np.bool_)

    @cached_property
    def timed_places(self) -> dict[tuple[int, str, int], int]:
        """(block, task, repetition) -> position, of the trials that ended with an answer and undisturbed."""
        return self.places(self.ok & self.clean)

    def places(self, mask: Mask) -> dict[tuple[int, str, int], int]:
        """Return (block, task, repetition) -> position of the trials under `mask` (`bool[trials]`)."""
        cells = zip(self.values("block"), self.values("task_id"), self.values("repetition"), strict=True)
        return {cell: place for (place, cell), use in zip(enumerate(cells), mask.tolist(), strict=True) if use}

    @cached_property
    def scores(self) -> Floats:
        """Adherence per trial: 0 for every trial that failed, NaN only where a task has no checks."""
        reported = self.column("adherence_score")
        return np.where(self.ok, reported, 0.0)

    @cached_property
    def wall(self) -> Floats:
        """Wall-clock seconds."""
        return self.column("telemetry.total_latency")

    def task_means(self, values: Floats, mask: Mask) -> dict[str, float]:
        """Return the mean of the finite values under `mask`, per task that has any."""
        use = mask & np.isfinite(values)
        counts = np.bincount(self.task_codes[use], minlength=len(self.tasks))
        sums = np.bincount(self.task_codes[use], weights=values[use], minlength=len(self.tasks))
        return {task: float(sums[i] / counts[i]) for i, task in enumerate(self.tasks) if counts[i]}


@dataclass(frozen=True)
class TrialTable:
    """All counted trials of a run, by (model id, quant tag), and what was passed over."""

    groups: dict[tuple[str, str], Group]
    superseded: int
    first_clean: int
    """Cells whose first attempt was clean."""
    all_runs: dict[tuple[str, str], tuple[TrialView, ...]]
    """Every run of every cell, all attempts and the repeats for determinism included."""

    @property
    def counted(self) -> int:
        """Number of counted trials."""
        return sum(len(group.trials) for group in self.groups.values())

    def trials(self) -> Iterable[TrialView]:
        """Iterate over all counted trials, in a fixed order."""
        return (trial for key in sorted(self.groups) for trial in self.groups[key].trials)


def build_table(plan: Plan, trials: Iterable[TrialView]) -> TrialTable:
    """Group the matrix trials of a plan; one attempt of each cell counts (`attempts.counted`), the others are superseded.

    Raises `StoreError` for a row of another plan or outside the plan's matrix: such a journal cannot be trusted.
    """
    first: dict[Cell, TrialView] = {}
    multiple: dict[Cell, list[TrialView]] = {}
    repeats: dict[tuple[str, str], list[TrialView]] = {}
    digest = plan.digest
    for trial in trials:
        if trial.phase not in (MATRIX, DETERMINISM):
            continue
        if trial.plan_digest != digest:
            msg = f"trial of {trial.quant_tag} on {trial.task_id} belongs to another plan ({trial.plan_digest[:12]})"
            raise StoreError(msg)
        if trial.phase == DETERMINISM:
            repeats.setdefault((trial.model_id, trial.quant_tag), []).append(trial)
            continue
        key = (trial.model_id, trial.quant_tag, trial.task_id, trial.repetition)
        known = first.setdefault(key, trial)
        if known is not trial:
            multiple.setdefault(key, [known]).append(trial)
    _refuse_strangers(plan, first)
    by_variant: dict[tuple[str, str], list[TrialView]] = {}
    for key in sorted(first):
        by_variant.setdefault(key[:2], []).append(counted(multiple[key]) if key in multiple else first[key])
    for pair, rows in by_variant.items():
        repeats.setdefault(pair, []).extend(rows)
    for key, attempts in multiple.items():
        repeats[key[:2]] += [trial for trial in attempts if trial is not counted(attempts)]
    first_attempts = first | {key: min(attempts, key=attrgetter("attempt")) for key, attempts in multiple.items()}
    return TrialTable(
        {key: Group(tuple(rows)) for key, rows in by_variant.items()},
        superseded=sum(len(attempts) - 1 for attempts in multiple.values()),
        first_clean=sum(trial.run_quality_status is RunQuality.CLEAN for trial in first_attempts.values()),
        all_runs={key: tuple(rows) for key, rows in repeats.items()},
    )


def _refuse_strangers(plan: Plan, cells: Iterable[Cell]) -> None:
    models = {model.model_id for model in plan.models}
    quants, tasks = set(plan.spec.quants), {task.task_id for task in plan.tasks}
    for model, quant, task, repetition in cells:
        if model in models and quant in quants and task in tasks and repetition >= 0:
            continue
        msg = f"trial of {model} {quant} on {task}, repetition {repetition}, is not part of the plan"
        raise StoreError(msg)
