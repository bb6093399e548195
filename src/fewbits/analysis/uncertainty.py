"""How sure the choice is: draw the items anew many times, choose each time, and count who wins. Pure: fixed seed.

Items (tasks) are the units, and since every block is made of whole tasks they carry their blocks along: adherence and
latency of one resample come from the same draw, so whatever hangs together in the data does so in every resample.
Source: Efron (1979), Bootstrap Methods, Annals of Statistics 7(1); for selection probabilities Efron, Halloran and Holmes
(1996), Bootstrap confidence levels, PNAS 93(23).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fewbits.analysis.frontier import memory_axis
from fewbits.analysis.recommend import TOLERANCE
from fewbits.analysis.statistics import DECIMALS, resample_counts
from fewbits.analysis.trial_table import Codes, Floats, Mask
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import RowUncertainty

MAX_RESAMPLES, MIN_RESAMPLES = 1000, 200
"""With 1,000 resamples a probability is known to about 3 points (two standard errors), with 200 to 7."""
MAX_DRAWS = 500_000
"""Resamples x tasks beyond which there are fewer resamples: journals of 100,000 trials stay within about a second."""
UTILITY_DECIMALS = 9
"""As in `recommend`: utilities that differ by less are a tie."""
_Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class VariantEvidence:
    """What one variant showed: mean adherence (0..1) and median clean wall seconds per task, and its sizes in bytes.

    Either mapping may lack tasks (deciding stops variants early) or be empty: such a variant is never picked.
    """

    quant_tag: str
    rank: int
    """0 = fewest bits per weight; unique in a session."""
    adherence: Mapping[str, float]
    seconds: Mapping[str, float]
    peak_memory_rss: int | None = None
    variant_bytes: int | None = None
    eliminated: bool = False
    """Out for a reason that no other draw of items changes (its divergence lies above the harm line): never picked."""


@dataclass(frozen=True, slots=True)
class PickShare:
    """How often a variant was the pick, 0..1."""

    quant_tag: str
    share: float


@dataclass(frozen=True, slots=True)
class SelectionUncertainty:
    """Probabilities per variant, and both races with whoever was ever picked, most often first (ties: fewer bits first)."""

    rows: dict[str, RowUncertainty]
    minimum_viable: tuple[PickShare, ...]
    best_value: tuple[PickShare, ...]
    resamples: int
    tasks: int

    def rival(self, race: Sequence[PickShare], quant_tag: str | None) -> PickShare | None:
        """Return who else was picked most often in `race`; `None` when nobody else ever was."""
        return next((pick for pick in race if pick.quant_tag != quant_tag), None)


@dataclass(frozen=True)
class _Draws:
    """Variants in tag order, and what each resample shows of them: `float64[variants, resamples]`, NaN where nothing."""

    variants: tuple[VariantEvidence, ...]
    adherence: Floats
    difference: Floats
    """To the reference, over the tasks that both have."""
    latency: Floats
    slowdown: Floats
    """Median of seconds / the reference's seconds, over the tasks that both have."""
    reference: int | None

    @cached_property
    def known(self) -> Mask:
        """`bool[variants, resamples]`: there is an adherence and a latency."""
        return np.isfinite(self.adherence) & np.isfinite(self.latency)

    @cached_property
    def comparable_adherence(self) -> Floats:
        """Adherence on the reference's tasks: variants that were stopped early answered fewer of them."""
        if self.reference is None:
            return self.adherence
        return _preferring(self.adherence[self.reference] + self.difference, self.adherence)

    @cached_property
    def comparable_latency(self) -> Floats:
        """Seconds on the reference's tasks."""
        if self.reference is None:
            return self.latency
        return _preferring(self.latency[self.reference] * self.slowdown, self.latency)

    @cached_property
    def ranks(self) -> Codes:
        """`int[variants, 1]`."""
        return np.array([[variant.rank] for variant in self.variants], dtype=np.intp)

    @cached_property
    def memory(self) -> Floats:
        """`float64[variants, 1]`, bytes; all 0 where there is no memory axis."""
        axis = memory_axis([variant for variant in self.variants if variant.adherence and variant.seconds])
        sizes = [getattr(variant, axis) if axis else 0 for variant in self.variants]
        return np.array([[np.nan if size is None else size] for size in sizes], dtype=np.float64)


def joint_uncertainty(
    variants: Sequence[VariantEvidence], reference_tag: str | None, policy: SelectionPolicy
) -> SelectionUncertainty | None:
    """Return how often each variant lies on the frontier and is either pick when the tasks are drawn anew.

    Each resample draws as many tasks as there are, with replacement, and judges by the point version of the policy's rule:
    the bar itself, without tests. What is compared between variants (frontier, best value of `three-zone-v1`) is carried
    over to the reference's tasks, as in `recommend`; limits are on a variant's own. Picks need a reference that scores above
    the floor in that resample. The same data give the same result, whatever the order of `variants`. `None` with fewer than
    two tasks, which have no spread.
    Pass only variants that take part in the choice (valid, or let in). Raises `ValueError` on a repeated tag.
    """
    ordered = tuple(sorted(variants, key=lambda variant: variant.quant_tag))
    if len({variant.quant_tag for variant in ordered}) != len(ordered):
        msg = "a quant tag appears twice"
        raise ValueError(msg)
    tasks = sorted(set().union(*(variant.adherence.keys() | variant.seconds.keys() for variant in ordered)))
    if len(tasks) < 2:
        return None
    draws = _draw(ordered, tasks, reference_tag)
    qualifies = _qualifies(draws, policy)
    frontier = _on_frontier(draws).mean(axis=1)
    smallest = _win_shares(qualifies, (draws.ranks,))
    best = _win_shares(qualifies, _value_keys(draws, policy))
    resamples = draws.adherence.shape[1]
    rows = {
        variant.quant_tag: RowUncertainty(
            frontier_probability=round(float(frontier[i]), DECIMALS),
            best_value_probability=round(float(best[i]), DECIMALS),
            minimum_viable_probability=round(float(smallest[i]), DECIMALS),
            resamples=resamples,
        )
        for i, variant in enumerate(ordered)
    }
    return SelectionUncertainty(rows, _race(ordered, smallest), _race(ordered, best), resamples, len(tasks))


def resamples_for(tasks: int) -> int:
    """Return how many resamples are drawn of that many tasks (at least one)."""
    return max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_DRAWS // tasks))


def _draw(variants: tuple[VariantEvidence, ...], tasks: Sequence[str], reference_tag: str | None) -> _Draws:
    counts = resample_counts(len(tasks), resamples_for(len(tasks))).astype(np.int32)
    scores = [_column(variant.adherence, tasks) for variant in variants]
    reference = next((i for i, variant in enumerate(variants) if variant.quant_tag == reference_tag), None)
    base = scores[reference] if reference is not None else np.full(len(tasks), np.nan)
    times = [_column(variant.seconds, tasks) for variant in variants]
    pace = times[reference] if reference is not None else np.full(len(tasks), np.nan)
    pace = np.where(pace > 0, pace, np.nan)
    return _Draws(
        variants=variants,
        adherence=np.array([_weighted_mean(counts, column) for column in scores]),
        difference=np.array([_weighted_mean(counts, column - base) for column in scores]),
        latency=np.array([_weighted_median(counts, column) for column in times]),
        slowdown=np.array([_weighted_median(counts, column / pace) for column in times]),
        reference=reference,
    )


def _preferring(shared: Floats, own: Floats) -> Floats:
    """Return each variant's `shared` values, its `own` where it shares no task with the reference at all; rounded as rows are."""
    has = np.isfinite(shared).any(axis=1, keepdims=True)
    values: Floats = np.where(has, shared, own)
    return np.round(values, DECIMALS)


def _column(values: Mapping[str, float], tasks: Sequence[str]) -> Floats:
    return np.array([values.get(task, np.nan) for task in tasks], dtype=np.float64)


def _weighted_mean(counts: _Counts, values: Floats) -> Floats:
    """Return `float64[resamples]` over the tasks with a value, rounded as rows are; NaN where none of them was drawn."""
    has = np.isfinite(values)
    drawn = counts[:, has]
    totals = drawn.sum(axis=1)
    means = np.full(len(counts), np.nan)
    np.divide(drawn @ values[has], totals, out=means, where=totals > 0)
    return np.round(means, DECIMALS)


def _weighted_median(counts: _Counts, values: Floats) -> Floats:
    """Return `float64[resamples]`: the usual median of the drawn tasks that have a value, NaN where none was drawn."""
    has = np.flatnonzero(np.isfinite(values))
    medians = np.full(len(counts), np.nan)
    if not has.size:
        return medians
    order = has[np.argsort(values[has], kind="stable")]
    # the sorted values, each as often as its task was drawn: the two middle ones of an even number are averaged
    reached = np.cumsum(counts[:, order], axis=1)
    totals = reached[:, -1:]
    lower = (2 * reached >= totals).argmax(axis=1)
    upper = (2 * reached > totals).argmax(axis=1)
    ordered = values[order]
    drawn = totals[:, 0] > 0
    medians[drawn] = ((ordered[lower] + ordered[upper]) / 2)[drawn]
    return np.round(medians, DECIMALS)


def _on_frontier(draws: _Draws) -> Mask:
    """Return `bool[variants, resamples]`: who is compared and beaten by nobody. NaN beats nothing and is no member."""
    adherence, latency = draws.comparable_adherence, draws.comparable_latency
    known = np.isfinite(adherence) & np.isfinite(latency)
    axes = [(adherence, 1), (latency, -1), (np.broadcast_to(draws.memory, known.shape), -1)]
    beaten = np.zeros_like(known)
    for i in range(len(known)):
        for j in range(len(known)):
            gains = [sign * (values[j] - values[i]) for values, sign in axes]
            beaten[i] |= known[j] & np.all([gain >= 0 for gain in gains], axis=0) & np.any([gain > 0 for gain in gains], axis=0)
    return known & ~beaten


def _qualifies(draws: _Draws, policy: SelectionPolicy) -> Mask:
    """Return `bool[variants, resamples]`: who clears the bar in each resample. The reference needs no comparison with itself."""
    if draws.reference is None:
        return np.zeros_like(draws.known)
    base = draws.adherence[draws.reference]
    floor = draws.adherence >= policy.adherence_floor - TOLERANCE
    if policy.name is PolicyName.THRESHOLD:
        holds = draws.adherence >= policy.adherence_threshold * base - TOLERANCE
    else:
        holds = draws.difference >= -policy.equivalence_margin - TOLERANCE
    holds[draws.reference] = True
    usable = draws.known[draws.reference] & floor[draws.reference] & (base > 0)
    allowed = np.array([not variant.eliminated for variant in draws.variants])[:, None]
    fast = draws.latency <= policy.latency_ceiling + TOLERANCE
    qualifies: Mask = draws.known & floor & holds & fast & usable & allowed
    return qualifies


def _value_keys(draws: _Draws, policy: SelectionPolicy) -> tuple[npt.NDArray[np.generic], ...]:
    """Return what orders the qualifying by value, most important first, smaller is better; shapes as in `_Draws`."""
    if policy.name is PolicyName.THRESHOLD:
        utility = np.zeros_like(draws.adherence)
        np.divide(draws.adherence, draws.latency, out=utility, where=draws.latency > 0)
        # roadmap, phase 4: utility, then adherence, then lower latency, then more bits per weight
        return (-np.round(utility, UTILITY_DECIMALS), -draws.adherence, draws.latency, -draws.ranks)
    return (draws.comparable_latency, draws.memory, draws.ranks)


def _win_shares(qualifies: Mask, keys: Sequence[npt.NDArray[np.generic]]) -> Floats:
    """Return `float64[variants]`: how often each is first among the qualifying. Full ties go to the first tag."""
    ordered = [np.broadcast_to(key, qualifies.shape) for key in (~qualifies, *keys)]
    # lexsort is stable and takes its most important key last
    winners = np.lexsort(ordered[::-1], axis=0)[0]
    wins: Floats = np.bincount(winners[qualifies.any(axis=0)], minlength=len(qualifies)) / qualifies.shape[1]
    return wins


def _race(variants: Sequence[VariantEvidence], shares: Floats) -> tuple[PickShare, ...]:
    placed = sorted(zip(shares.tolist(), variants, strict=True), key=lambda pair: (-pair[0], pair[1].rank, pair[1].quant_tag))
    return tuple(PickShare(variant.quant_tag, share) for share, variant in placed if share > 0)
