"""Outcomes of items from trials, and the decisions that follow from a journal: the run loop and the summary share both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from fewbits.analysis.attempts import outcome_score
from fewbits.analysis.items import item_blocks
from fewbits.analysis.race import Outcomes, Race
from fewbits.analysis.ranking import Artifacts, compared_ranks
from fewbits.records.plan import Plan
from fewbits.records.trial import TrialView

HarmPs = Mapping[tuple[str, str], float | None]
"""(model id, quant tag) -> the divergence test's p-value; `None` or absent where divergence was not measured."""
ItemScore = Callable[[str, str], float | None]
"""(quant tag, task id) -> mean adherence over the repetitions; `None` while repetitions are missing, or without checks."""


def item_score(trials: Sequence[TrialView], runs: int) -> float | None:
    """Return the mean score of one variant's counted trials of one task; `None` until all `runs` repetitions are there."""
    scores = [outcome_score(trial) for trial in trials]
    known = [score for score in scores if score is not None]
    return math.fsum(known) / runs if len(known) == runs else None


def block_outcomes(tasks: Sequence[str], live: Iterable[str], reference: str, score: ItemScore) -> list[Outcomes]:
    """Return per task the differences of the live variants to the reference; tasks that the reference lacks are left out."""
    items: list[Outcomes] = []
    tags = tuple(live)
    for task in tasks:
        base = score(reference, task)
        if base is None:
            continue
        scores = {tag: score(tag, task) for tag in tags}
        items.append({tag: value - base for tag, value in scores.items() if value is not None})
    return items


def new_race(plan: Plan, model_id: str, artifacts: Artifacts, reference: str, harm_ps: HarmPs) -> Race:
    """Return the race of one model's variants before its first item."""
    ranks = compared_ranks(plan, model_id, artifacts, reference)
    return Race(ranks, plan.spec.policy_of(model_id), plan.spec.decide, {tag: harm_ps.get((model_id, tag)) for tag in ranks})


def replay(
    plan: Plan,
    race: Race,
    model_id: str,
    reference: str,
    trials: Mapping[tuple[str, str], Sequence[TrialView]],
) -> Race:
    """Feed a race with what a journal holds, as the run loop did. `trials`: (quant tag, task id) -> counted trials.

    Stops before the first block that is not complete: a decision falls only at the end of a block.
    """
    runs = plan.spec.runs_per_quant
    first_block = model_index(plan, model_id) * len(item_blocks(plan))

    def score(tag: str, task: str) -> float | None:
        return item_score(trials.get((tag, task), ()), runs)

    for number, tasks in enumerate(item_blocks(plan), start=first_block):
        live = race.live
        if not live or any(len(trials.get((tag, task), ())) < runs for tag in (reference, *live) for task in tasks):
            break
        race.close_block(number, block_outcomes(tasks, live, reference, score))
    return race


def model_index(plan: Plan, model_id: str) -> int:
    """Return a model's place in the plan."""
    return [source.model_id for source in plan.models].index(model_id)
