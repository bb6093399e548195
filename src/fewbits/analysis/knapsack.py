"""The budgeted choice: one type per group, the smallest total cost that fits into a number of bytes. Pure.

This is the multiple-choice knapsack problem. `choose` solves it exactly as an integer programme with HiGHS (through SciPy);
sizes are counted in whole steps, so that no tolerance decides what fits. A race asks for hundreds of resampled copies at once,
for which HiGHS is too slow (0.1 s each): `best_picks` is exact too, by a price per byte (the Lagrangian relaxation), whose bound
strikes out nearly all options, and by combining the few that are left. The tests compare the two.

Sources: Huangfu and Hall (2018), Parallelizing the dual revised simplex method, Mathematical Programming Computation 10, 119-142
(HiGHS); Sinha and Zoltners (1979), The Multiple-Choice Knapsack Problem, Operations Research 27(3), 503-515 (dominance inside a
group, bounds); Everett (1963), Generalized Lagrange Multiplier Method, Operations Research 11(3), 399-417 (the price per byte);
Nemhauser and Ullmann (1969), Discrete Dynamic Programming and Capital Allocation, Management Science 15(9), 494-505 (lists of
undominated combinations).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewbits.analysis.statistics import Floats
from fewbits.core.errors import BackendError, SpecError
from fewbits.core.output import native_stdout_to_stderr
from fewbits.core.units import format_bytes

Bytes = npt.NDArray[np.int64]
Picks = npt.NDArray[np.intp]

_TIE = 1e-9
"""Totals (above each group's cheapest) that differ by less than this share are a tie: floats summed in another order differ by
about 1e-15."""
_MAX_COMBINATIONS = 4_000_000
"""About 200 MB. Real instances need a few thousand."""
_OBJECTIVE_SCALE = 1e5
"""The solver stops at an absolute gap of 1e-6: at this scale of the known choice's cost that is 1e-11 of it."""
_BISECTIONS = 60
_FILL_PASSES = 12
_NEVER_ZERO = 1e-300


@dataclass(frozen=True, slots=True)
class Option:
    """One type that a group could have: its size, and what it costs in quality (any unit that adds up; lower is better)."""

    name: str
    bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One option for every group."""

    picks: dict[str, str]
    """Group -> name of its option."""
    bytes: int
    cost: float


def choose(groups: Mapping[str, Sequence[Option]], budget_bytes: int, *, where: str = "budget") -> Choice:
    """Choose one option per group with the smallest total cost within `budget_bytes`.

    Inside a group ties go to fewer bytes, then to the first name; between groups whose options are alike the first name gets the
    larger option. The order of the mapping and of the options never matters. Raises `SpecError` at `where` when even the smallest
    options do not fit, with the minimum; `ValueError` for a group without options, or with a cost that is not a number;
    `BackendError` when the solver finds no answer.
    """
    candidates = {name: _undominated(name, groups[name]) for name in sorted(groups)}
    smallest = sum(options[0].bytes for options in candidates.values())
    if smallest > budget_bytes:
        raise SpecError.single(where, *_infeasible(groups, smallest, budget_bytes))
    if not candidates:
        return Choice({}, 0, 0.0)
    width = max(len(options) for options in candidates.values())
    costs = np.full((1, len(candidates), width), np.inf)
    sizes = np.zeros((len(candidates), width), dtype=np.int64)
    for row, options in enumerate(candidates.values()):
        costs[0, row, : len(options)] = [option.cost - options[-1].cost for option in options]
        sizes[row, : len(options)] = [option.bytes for option in options]
    known = _filled(costs, sizes, _priced(costs, sizes, budget_bytes)[0], budget_bytes)[0]
    places = _solved(costs[0], sizes, budget_bytes, known)
    picks = {name: options[place] for (name, options), place in zip(candidates.items(), places, strict=True)}
    return _choice(_in_name_order(candidates, picks))


def best_picks(costs: Floats, sizes: Bytes, budget_bytes: int) -> Picks:
    """Return `int[resamples, groups]`: the place of each group's option in the best choice, for many costs at once.

    `costs` is `float64[resamples, groups, options]`, at least 0 and infinite where a group has no such option; `sizes` is
    `int64[groups, options]`. Raises `ValueError` when the smallest options do not fit, `BackendError` when too many combinations
    are as good as equal.
    """
    picks, prices = _priced(costs, sizes, budget_bytes)
    known = _filled(costs, sizes, picks, budget_bytes)
    return np.stack([_combined(costs[row], sizes, budget_bytes, prices[row], known[row]) for row in range(len(costs))])


def picked(costs: Floats, picks: Picks) -> Floats:
    """Return `float64[resamples]`: the total of picks (`int[resamples, groups]`) under costs `[resamples, groups, options]`."""
    total: Floats = np.take_along_axis(costs, picks[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    return total


def _undominated(name: str, options: Sequence[Option]) -> tuple[Option, ...]:
    """Options in order of size, each cheaper than all smaller ones: no other can be part of the best choice."""
    if not options or any(not math.isfinite(option.cost) for option in options):
        msg = f"group {name!r} needs options, each with a finite cost"
        raise ValueError(msg)
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.cost, option.name)):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return tuple(kept)


def _infeasible(groups: Mapping[str, Sequence[Option]], smallest: int, budget_bytes: int) -> tuple[str, str]:
    message = (
        f"{budget_bytes:,} bytes are too few: the smallest types need {smallest:,} bytes "
        f"({format_bytes(smallest - budget_bytes)} more)"
    )
    heavy = max(sorted(groups), key=lambda name: min(option.bytes for option in groups[name]))
    least = min(groups[heavy], key=lambda option: (option.bytes, option.name))
    return message, (
        f"raise the budget to at least that, or allow smaller types; the largest group is {heavy}, "
        f"{format_bytes(least.bytes)} at {least.name}"
    )


def _choice(picks: Mapping[str, Option]) -> Choice:
    return Choice(
        picks={name: option.name for name, option in sorted(picks.items())},
        bytes=sum(option.bytes for option in picks.values()),
        cost=math.fsum(option.cost for option in picks.values()),
    )


def _in_name_order(candidates: Mapping[str, tuple[Option, ...]], picks: Mapping[str, Option]) -> dict[str, Option]:
    """Groups with the same options are interchangeable: the first name gets the larger option."""
    alike: dict[tuple[Option, ...], list[str]] = {}
    for name, options in candidates.items():
        alike.setdefault(options, []).append(name)
    ordered: dict[str, Option] = {}
    for names in alike.values():
        ordered.update(zip(names, sorted((picks[name] for name in names), key=lambda option: -option.bytes), strict=True))
    return ordered


def _total(sizes: Bytes, picks: Picks) -> Bytes:
    total: Bytes = sizes[np.arange(len(sizes))[None, :], picks].sum(axis=1)
    return total


def _smallest_step(sizes: Bytes) -> int:
    """Smallest difference in bytes between two options of one group, at least 1."""
    steps = np.diff(np.sort(sizes, axis=1), axis=1)
    positive = steps[steps > 0]
    return int(positive.min()) if positive.size else 1


def _priced(costs: Floats, sizes: Bytes, budget_bytes: int) -> tuple[Picks, Floats]:
    """Return picks that fit, and the lowest price per byte (`float64[resamples]`) at which they are each group's cheapest."""
    usable = np.isfinite(costs)
    picks = np.where(usable, sizes, np.iinfo(np.int64).max).argmin(axis=2)
    if (_total(sizes, picks) > budget_bytes).any():
        msg = "the smallest options do not fit"
        raise ValueError(msg)
    steepest = (np.ptp(np.where(usable, costs, 0.0), axis=2).max(axis=1) + _NEVER_ZERO) / _smallest_step(sizes)
    low, high = np.log(steepest) - 40.0, np.log(steepest) + 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        trial = (costs + np.exp(middle)[:, None, None] * sizes).argmin(axis=2)
        fits = _total(sizes, trial) <= budget_bytes
        picks = np.where(fits[:, None], trial, picks)
        high, low = np.where(fits, middle, high), np.where(fits, low, middle)
    return picks, np.exp(high)


def _filled(costs: Floats, sizes: Bytes, picks: Picks, budget_bytes: int) -> Picks:
    """Spend what is left: the single change that saves most, again and again, while one fits."""
    rows = np.arange(len(costs))
    filled = picks.copy()
    for _ in range(_FILL_PASSES):
        now_cost = np.take_along_axis(costs, filled[:, :, None], axis=2)
        now_size = sizes[np.arange(len(sizes))[None, :], filled][:, :, None]
        left = budget_bytes - now_size.sum(axis=(1, 2))
        saving = np.where(sizes[None] - now_size <= left[:, None, None], now_cost - costs, 0.0)
        best = saving.reshape(len(rows), -1).argmax(axis=1)
        group, option = np.divmod(best, costs.shape[2])
        gains = saving[rows, group, option] > 0
        if not gains.any():
            break
        filled[rows[gains], group[gains]] = option[gains]
    return filled


def _solved(costs: Floats, sizes: Bytes, budget_bytes: int, known: Picks) -> Picks:
    """Return the best choice's places, from HiGHS; `known` is a choice that fits, and sets the scale."""
    groups, places = np.nonzero(np.isfinite(costs))
    extra = sizes - np.where(np.isfinite(costs), sizes, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    known_cost = float(costs[np.arange(len(costs)), known].sum())
    step = int(np.gcd.reduce(extra[groups, places]))
    if step == 0 or known_cost <= 0.0:  # nothing is larger than the smallest, or nothing is left to save
        return known
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    with np.errstate(over="ignore"):  # next to a subnormal cost; an option dearer than the known choice can never improve it
        objective = np.minimum(costs[groups, places] / known_cost, 2.0) * _OBJECTIVE_SCALE
    variables = len(groups)
    one_each = csr_array((np.ones(variables), (groups, np.arange(variables))), shape=(len(costs), variables))
    spare = budget_bytes - int((sizes - extra).max(axis=1).sum())
    room = LinearConstraint((extra[groups, places] // step)[None, :].astype(float), -np.inf, spare // step + 0.5)
    with native_stdout_to_stderr():  # some builds of HiGHS print a line about themselves
        result = milp(
            objective,
            integrality=np.ones(variables),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), room],
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        tool = "HiGHS"
        raise BackendError(tool, f"found no choice: {result.message}")
    chosen = np.flatnonzero(result.x > 0.5)
    found: Picks = np.zeros(len(costs), dtype=np.intp)
    found[groups[chosen]] = places[chosen]
    fits = int(sizes[np.arange(len(costs)), found].sum()) <= budget_bytes and len(chosen) == len(costs)
    return found if fits and float(costs[np.arange(len(costs)), found].sum()) <= known_cost else known


def _combined(costs: Floats, sizes: Bytes, budget_bytes: int, price: float, known: Picks) -> Picks:
    """Improve a known choice to the best one: combinations of what the bound leaves, group by group.

    At a price p per byte every choice that fits costs at least L = sum over groups of min(cost + p bytes) - p budget. An option
    that is r dearer than its group's best at that price raises this to L + r, and so does a combination with its parts' r.
    What lies above the known choice's cost is out.
    """
    priced = costs + price * sizes
    dearer = priced - priced.min(axis=1, keepdims=True)
    known_cost = float(costs[np.arange(len(costs)), known].sum())
    spare = known_cost - (float(priced.min(axis=1).sum()) - price * budget_bytes)
    allowed = max(spare, 0.0) + _TIE * known_cost
    if spare <= _TIE * known_cost * 0.5:  # the bound is met, and a smaller choice would be dearer by the price of its bytes
        return known
    kept = dearer <= allowed
    picks: Picks = kept.argmax(axis=1)
    open_groups = np.flatnonzero(kept.sum(axis=1) > 1)
    spread = np.where(kept, dearer, 0.0).max(axis=1)
    order = open_groups[np.argsort(-spread[open_groups], kind="stable")]
    fixed = np.setdiff1d(np.arange(len(costs)), order)
    room = budget_bytes - int(sizes[fixed, picks[fixed]].sum())
    parts = [_Part.of(costs[group], sizes[group], dearer[group], kept[group]) for group in order]
    for group, place in zip(order, _best_combination(parts, room, allowed), strict=True):
        picks[group] = place
    return picks


@dataclass(frozen=True, slots=True)
class _Part:
    """The options of one group that the bound leaves: places, bytes, cost, and how much dearer than the group's best."""

    places: Picks
    sizes: Bytes
    costs: Floats
    dearer: Floats

    @classmethod
    def of(cls, costs: Floats, sizes: Bytes, dearer: Floats, kept: npt.NDArray[np.bool_]) -> _Part:
        places = np.flatnonzero(kept)
        return cls(places, sizes[places], costs[places], dearer[places])


def _best_combination(parts: Sequence[_Part], room: int, allowed: float) -> list[int]:
    """Return the place of each part's option in the cheapest combination of at most `room` bytes; ties: fewest bytes."""
    still_needed = np.cumsum([0, *(int(part.sizes.min()) for part in reversed(parts))])[-2::-1]
    size, cost, dearer = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1)
    trail: list[tuple[Picks, Picks]] = []
    for part, needed in zip(parts, still_needed, strict=True):
        sizes = (size[:, None] + part.sizes).ravel()
        costs = (cost[:, None] + part.costs).ravel()
        extra = (dearer[:, None] + part.dearer).ravel()
        viable = np.flatnonzero((sizes + needed <= room) & (extra <= allowed))
        viable = viable[np.lexsort((costs[viable], sizes[viable]))]
        least = np.minimum.accumulate(costs[viable])
        viable = viable[np.concatenate([[True], costs[viable][1:] < least[:-1]])]
        if len(viable) > _MAX_COMBINATIONS:
            tool = "budgeted choice"
            raise BackendError(tool, "too many combinations are as good as equal: use fewer groups (--bands)")
        size, cost, dearer = sizes[viable], costs[viable], extra[viable]
        parent, option = np.divmod(viable, len(part.places))
        trail.append((parent, part.places[option]))
    state = int(np.flatnonzero(cost <= cost[-1] + _TIE * abs(cost[-1]))[0])
    places = []
    for parent, option in reversed(trail):
        places.append(int(option[state]))
        state = int(parent[state])
    return places[::-1]
