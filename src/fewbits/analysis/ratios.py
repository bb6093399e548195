"""Speed as ratios to the reference inside blocks: what a drifting machine does to both sides at once cancels out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewbits.analysis.statistics import quantile_estimate
from fewbits.analysis.trial_table import Codes, Floats, Group, Mask
from fewbits.records.base import Unavailable
from fewbits.records.estimate import Estimate

_RATES = "telemetry.token_metrics."
_CHANNELS: dict[str, tuple[str, Unavailable]] = {
    "latency_ratio": ("telemetry.total_latency", Unavailable.NOT_REPORTED),
    "generation_rate_ratio": (_RATES + "generation_tokens_per_second", Unavailable.TOKEN_STATUS_NOT_OK),
    "prompt_rate_ratio": (_RATES + "prompt_tokens_per_second", Unavailable.TOKEN_STATUS_NOT_OK),
}
"""Field of the row -> the trial's number, and why there is no ratio when no pair has it."""
RATIO_FIELDS = tuple(_CHANNELS)


@dataclass(frozen=True, slots=True)
class BlockRatios:
    """Variant / reference, median over pairs; `unavailable` maps each `None` to an `Unavailable` code.

    Fields are named as in `QuantRow`. Below 1, a latency ratio is faster; above 1, a rate ratio is.
    """

    latency_ratio: Estimate | None
    generation_rate_ratio: Estimate | None
    prompt_rate_ratio: Estimate | None
    unavailable: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Positions of the paired trials in either group, `int[pairs]`."""

    variant: Group
    reference: Group
    left: Codes
    right: Codes

    def units(self, use: Mask) -> int:
        """Return the number of independent units among the pairs under `use` (`bool[pairs]`).

        Repetitions of a task are not independent, and neither are tasks that one variant answered in one go: whatever
        there is fewer of, tasks or blocks, counts.
        """
        trials = [self.variant.trials[position] for position in self.left[use]]
        return min(len({trial.task_id for trial in trials}), len({trial.block for trial in trials}))


def block_ratios(variant: Group, reference: Group) -> BlockRatios:
    """Return the median within-block ratios of wall seconds and of both token rates, each with a 95 % interval.

    A pair is the same task and repetition in the same block, answered well (`OK`) and undisturbed (`CLEAN`) by both.
    A factor that slows a whole block down (heat, another tenant) is in both numbers of a pair, so the ratio is free of it.
    Source: distribution-free interval for a median, Hahn and Meeker (1991), Statistical Intervals, section 5.2.
    """
    found: dict[str, Estimate] = {}
    reasons: dict[str, str] = {}
    pairs = _paired(variant, reference)
    for name, (path, missing) in _CHANNELS.items():
        result = pairs if isinstance(pairs, Unavailable) else _ratio(pairs, path, missing)
        if isinstance(result, Estimate):
            found[name] = result
        else:
            reasons[name] = str(result)
    return BlockRatios(
        latency_ratio=found.get("latency_ratio"),
        generation_rate_ratio=found.get("generation_rate_ratio"),
        prompt_rate_ratio=found.get("prompt_rate_ratio"),
        unavailable=reasons,
    )


def _paired(variant: Group, reference: Group) -> _Pairs | Unavailable:
    """Pair the trials that count, or say at which condition the last pair was lost."""
    conditions: tuple[tuple[Unavailable, Callable[[Group], Mask]], ...] = (
        (Unavailable.NO_TRIALS, lambda group: np.ones(len(group.trials), dtype=np.bool_)),
        (Unavailable.TRIAL_FAILED, lambda group: group.ok),
        (Unavailable.NO_CLEAN_TRIALS, lambda group: group.ok & group.clean),
    )
    # the last condition implies the others, which are only looked at to say where the pairs were lost
    ours, theirs = variant.timed_places, reference.timed_places
    shared = [cell for cell in ours if cell in theirs]
    if not shared:
        return next(
            reason
            for reason, mask in conditions
            if variant.places(mask(variant)).keys().isdisjoint(reference.places(mask(reference)))
        )
    left = np.array([ours[cell] for cell in shared], dtype=np.intp)
    right = np.array([theirs[cell] for cell in shared], dtype=np.intp)
    return _Pairs(variant, reference, left, right)


def _ratio(pairs: _Pairs, path: str, missing: Unavailable) -> Estimate | Unavailable:
    ours: Floats = pairs.variant.column(path)[pairs.left]
    theirs: Floats = pairs.reference.column(path)[pairs.right]
    known = np.isfinite(ours) & np.isfinite(theirs)
    if not known.any():
        return missing
    use = known & (theirs > 0)
    estimate = quantile_estimate(ours[use] / theirs[use], 0.5, units=pairs.units(use))
    return Unavailable.ZERO_DENOMINATOR if estimate is None else estimate
