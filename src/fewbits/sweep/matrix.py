"""The matrix, block by block: run what the journal lacks, run again what others disturbed, decide, go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from fewbits.analysis.attempts import counted, is_disturbed, rerun_budget
from fewbits.analysis.race import Race
from fewbits.analysis.ranking import Artifacts, reference_tag
from fewbits.analysis.replay import HarmPs, block_outcomes, item_score, new_race
from fewbits.analysis.trial_table import DETERMINISM, MATRIX, Cell
from fewbits.records.plan import Plan, PlannedTrial
from fewbits.records.trial import TrialView
from fewbits.sweep.plan import planned_repeats, planned_trials
from fewbits.sweep.progress import SweepObserver

RunTrial = Callable[[PlannedTrial, str, int], TrialView]
"""(cell, phase, attempt) -> the row, after it was written to the journal."""
BeforeBlock = Callable[[int], None]
"""Hears the number of a block right before its first trial is run."""


def matrix_is_done(plan: Plan, rows: Sequence[TrialView]) -> bool:
    """Tell whether a journal holds every cell of a full matrix."""
    asked = {(row.model_id, row.quant_tag, row.task_id, row.repetition) for row in rows if row.phase == MATRIX}
    return all(cell.key in asked for cell in planned_trials(plan))


class Matrix:
    """The planned trials of a sweep and the state that they leave: attempts by cell, the budget for re-runs, one race a model."""

    def __init__(
        self,
        plan: Plan,
        artifacts: Artifacts,
        harm_ps: HarmPs,
        rows: Sequence[TrialView],
        observer: SweepObserver,
    ) -> None:
        self._plan, self._artifacts, self._harm_ps, self._observer = plan, artifacts, harm_ps, observer
        self._attempts: dict[Cell, list[TrialView]] = {}
        self._repeated: set[Cell] = set()
        self._entered = -1
        self._before_block: BeforeBlock = lambda _: None
        for row in rows:
            self._remember(row)
        matrix_rows = [row for row in rows if row.phase == MATRIX]
        self._last_block = max((row.block for row in matrix_rows), default=-1)
        self._reruns_left = rerun_budget(plan) - sum(row.attempt > 1 for row in matrix_rows)
        # a variant that could not be made has no artifact, and loses no other its trials
        self._planned = [cell for cell in planned_trials(plan) if (cell.model_id, cell.quant_tag) in artifacts]
        self._repeats = [cell for cell in planned_repeats(plan) if (cell.model_id, cell.quant_tag) in artifacts]

    @property
    def total(self) -> int:
        """Trials of the full matrix, repeats included, re-runs not."""
        return len(self._planned) + len(self._repeats)

    @property
    def done(self) -> int:
        """How many of them the journal holds."""
        return len(self._attempts) + len(self._repeated)

    def run(self, run_trial: RunTrial, before_block: BeforeBlock) -> None:
        """Run everything that is missing. What the callbacks raise passes through; the journal keeps what was measured."""
        self._before_block = before_block
        for model_id, of_model in groupby(self._planned, key=lambda cell: cell.model_id):
            blocks = [list(cells) for _, cells in groupby(of_model, key=lambda cell: cell.block)]
            self._run_model(model_id, blocks, run_trial)
        for cell in self._repeats:
            if cell.key not in self._repeated:
                self._enter(cell.block)
                self._remember(run_trial(cell, DETERMINISM, 1))

    def _enter(self, block: int) -> None:
        """Announce a block once, when it turns out that something of it must be run."""
        if block != self._entered:
            self._before_block(block)
            self._entered = block

    def _run_model(self, model_id: str, blocks: Sequence[list[PlannedTrial]], run_trial: RunTrial) -> None:
        reference = reference_tag(self._plan, model_id, self._artifacts)
        race = None
        if self._plan.spec.decide.enabled:
            race = new_race(self._plan, model_id, self._artifacts, reference, self._harm_ps)
        for place, cells in enumerate(blocks):
            if race is not None:
                cells = [cell for cell in cells if cell.quant_tag in (reference, *race.live)]  # noqa: PLW2901 - the rest is decided
            self._run_block(cells, run_trial)
            if race is not None and not self._decide(race, cells, reference, blocks[place + 1 :]):
                return

    def _run_block(self, cells: Sequence[PlannedTrial], run_trial: RunTrial) -> None:
        for cell in cells:
            if cell.key not in self._attempts:
                self._enter(cell.block)
                self._remember(run_trial(cell, MATRIX, 1))
        # an earlier block is closed: its outcomes may already have decided something
        if cells and cells[0].block >= self._last_block:
            self._run_again(cells, run_trial)

    def _run_again(self, cells: Sequence[PlannedTrial], run_trial: RunTrial) -> None:
        """Repeat what others disturbed, round by round, while the budget lasts."""
        for attempt in range(2, self._plan.spec.quality.rerun_max_attempts + 1):
            for cell in cells:
                attempts = self._attempts[cell.key]
                if self._reruns_left > 0 and len(attempts) < attempt and is_disturbed(counted(attempts)):
                    self._reruns_left -= 1
                    self._remember(run_trial(cell, MATRIX, max(row.attempt for row in attempts) + 1))

    def _decide(self, race: Race, cells: Sequence[PlannedTrial], reference: str, rest: Sequence[list[PlannedTrial]]) -> bool:
        """Close a block and tell what it decided; false when no variant of this model needs further items."""
        runs = self._plan.spec.runs_per_quant
        block, model_id = cells[0].block, cells[0].model_id
        tasks = tuple(dict.fromkeys(cell.task_id for cell in cells))

        def score(tag: str, task: str) -> float | None:
            return item_score([counted(self._attempts[model_id, tag, task, n]) for n in range(runs)], runs)

        decided = race.close_block(block, block_outcomes(tasks, race.live, reference, score))
        for decision in race.decisions():
            if decision.quant_tag in decided:
                live = (reference, *race.live) if race.live else ()
                left = sum(cell.quant_tag in live for later in rest for cell in later) + self._after(model_id)
                self._observer.variant_decided(model_id, decision, left)
        return bool(race.live)

    def _after(self, model_id: str) -> int:
        """Return how many trials follow on this model's: those of later models, and the repeats."""
        models = [source.model_id for source in self._plan.models]
        later = set(models[models.index(model_id) + 1 :])
        return sum(cell.model_id in later for cell in self._planned) + len(self._repeats)

    def _remember(self, row: TrialView) -> None:
        key = (row.model_id, row.quant_tag, row.task_id, row.repetition)
        if row.phase == MATRIX:
            self._attempts.setdefault(key, []).append(row)
        elif row.phase == DETERMINISM:
            self._repeated.add(key)
